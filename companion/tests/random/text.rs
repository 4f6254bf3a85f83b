//! Values as YAML and chance as a number: what the generator writes its files with.

/// A generator of chance: SplitMix64, for the same seed always the same.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn percent(&mut self, n: u64) -> bool {
        self.next() % 100 < n
    }

    pub(crate) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Each with this chance.
    pub(crate) fn some<T: Clone>(&mut self, of: &[T], percent: u64) -> Vec<T> {
        of.iter()
            .filter(|_| self.percent(percent))
            .cloned()
            .collect()
    }
}

/// A YAML value.
#[derive(Clone, Debug)]
pub(crate) enum Yaml {
    Text(String),
    Number(u64),
    Bool(bool),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
    /// As it is: an alias.
    Raw(String),
}

impl Yaml {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub(crate) fn texts<T: AsRef<str>>(texts: &[T]) -> Self {
        Self::List(texts.iter().map(|text| Self::text(text.as_ref())).collect())
    }

    pub(crate) fn map(entries: Vec<(&str, Yaml)>) -> Self {
        Self::Map(
            entries
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect(),
        )
    }

    /// In one line.
    fn flow(&self, dice: &mut Dice) -> String {
        match self {
            Self::Raw(text) => text.clone(),
            Self::Number(n) => n.to_string(),
            Self::Bool(value) => {
                let words = if *value {
                    ["true", "yes", "on", "True"]
                } else {
                    ["false", "no", "off", "False"]
                };
                (*dice.one(&words)).to_owned()
            }
            Self::Text(text) => {
                let plain = text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
                    && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
                match dice.below(if plain { 4 } else { 2 }) {
                    0 => format!("\"{text}\""),
                    1 => format!("'{text}'"),
                    _ => text.clone(),
                }
            }
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|item| item.flow(dice)).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Map(entries) => {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(key, value)| format!("{key}: {}", value.flow(dice)))
                    .collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }

    /// After its key, over several lines or in one.
    pub(crate) fn after_key(&self, indent: usize, dice: &mut Dice) -> String {
        let margin = " ".repeat(indent + 2);
        match self {
            Self::List(items) if !items.is_empty() && dice.percent(60) => {
                let mut text = "\n".to_owned();
                for item in items {
                    let body = match item {
                        Self::Map(entries) if !entries.is_empty() && dice.percent(60) => {
                            let lines: Vec<String> = entries
                                .iter()
                                .map(|(key, value)| {
                                    format!("{key}:{}", value.after_key(indent + 4, dice))
                                })
                                .collect();
                            lines.join(&format!("{margin}  "))
                        }
                        _ => format!("{}\n", item.flow(dice)),
                    };
                    text += &format!("{margin}- {body}");
                }
                text
            }
            Self::Map(entries) if !entries.is_empty() && dice.percent(60) => {
                let mut text = "\n".to_owned();
                for (key, value) in entries {
                    text += &format!("{margin}{key}:{}", value.after_key(indent + 2, dice));
                }
                text
            }
            _ => {
                let comment = if dice.percent(10) { "  # by hand" } else { "" };
                format!(" {}{comment}\n", self.flow(dice))
            }
        }
    }
}

/// A file of keys, in any order.
pub(crate) fn file(mut keys: Vec<(&str, Yaml)>, dice: &mut Dice) -> String {
    for i in (1..keys.len()).rev() {
        keys.swap(i, dice.below(i + 1));
    }
    let mut text = String::new();
    if dice.percent(20) {
        text += "---\n";
    }
    for (key, value) in keys {
        if dice.percent(10) {
            text += "# what follows is needed\n\n";
        }
        let key = match dice.below(20) {
            0 => format!("\"{key}\""),
            1 => format!("{key} "),
            _ => key.to_owned(),
        };
        text += &format!("{key}:{}", value.after_key(0, dice));
    }
    text
}
