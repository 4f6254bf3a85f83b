//! Where nginx sends a request, from the rendered text: a small reader of nginx's language, so that neither the plan nor
//! the program's own `route` has a say.

use std::collections::{BTreeMap, HashMap};

use regex::Regex;

/// A directive with its words and its block.
#[derive(Clone, Debug)]
struct Directive {
    words: Vec<String>,
    block: Vec<Directive>,
}

/// The rendered configuration.
pub(crate) struct Nginx {
    server: Vec<Directive>,
    maps: BTreeMap<String, (String, Vec<Directive>)>,
    upstreams: BTreeMap<String, Vec<String>>,
}

/// Patterns and what they match: the same ones come again in every deployment.
#[derive(Default)]
pub(crate) struct Matcher {
    patterns: HashMap<String, Regex>,
    known: HashMap<(String, String), bool>,
}

impl Matcher {
    fn matches(&mut self, pattern: &str, text: &str) -> bool {
        let key = (pattern.to_owned(), text.to_owned());
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let compiled = self
            .patterns
            .entry(pattern.to_owned())
            .or_insert_with(|| Regex::new(pattern).unwrap());
        let matches = compiled.is_match(text);
        self.known.insert(key, matches);
        matches
    }
}

impl Nginx {
    /// Reads what `render` prints: each file under its name.
    pub(crate) fn read(rendered: &str) -> Self {
        let files: BTreeMap<&str, &str> = rendered
            .split("#### ")
            .skip(1)
            .filter_map(|file| file.split_once('\n'))
            .collect();
        let parsed: BTreeMap<&str, Vec<Directive>> = files
            .iter()
            .map(|(name, text)| (*name, blocks(&mut words(text).into_iter())))
            .collect();
        let named = |file: &str, name: &str| {
            let directives = parsed.get(file).into_iter().flatten();
            let name = name.to_owned();
            directives.filter(move |d| d.words[0] == name).cloned()
        };
        let server = named("synapse/servers.conf", "server").next().unwrap();
        Self {
            server: included(server.block, &parsed),
            maps: named("synapse/maps.conf", "map")
                .map(|map| (map.words[2].clone(), (map.words[1].clone(), map.block)))
                .collect(),
            upstreams: named("synapse/upstreams.conf", "upstream")
                .map(|upstream| {
                    let servers = upstream.block.iter().filter(|d| d.words[0] == "server");
                    let servers = servers.map(|d| d.words[1].clone()).collect();
                    (upstream.words[1].clone(), servers)
                })
                .collect(),
        }
    }

    /// The group of a request. A query goes with the path.
    pub(crate) fn group(&self, method: &str, target: &str, matcher: &mut Matcher) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let location = find(&self.server, path, matcher).unwrap();
        let sets = |d: &&Directive| d.words[0] == "set" && d.words[1] == "$synapse_group";
        let set = location.iter().find(sets).unwrap();
        let value = &set.words[2];
        if !value.starts_with('$') {
            return value.clone();
        }
        let (source, entries) = &self.maps[value];
        let mut subject = source
            .replace("$request_method", method)
            .replace("$uri", path);
        for argument in ["since", "from", "full_state"] {
            let given = query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == argument);
            let given = given.map_or("", |(_, value)| value);
            subject = subject.replace(&format!("$arg_{argument}"), given);
        }
        let exact = entries.iter().find(|d| d.words[0] == subject);
        let pattern = entries.iter().find(|d| {
            let pattern = d.words[0].strip_prefix('~');
            pattern.is_some_and(|pattern| matcher.matches(pattern, &subject))
        });
        let default = entries.iter().find(|d| d.words[0] == "default");
        exact.or(pattern).or(default).unwrap().words[1].clone()
    }

    /// The addresses of a group.
    pub(crate) fn servers(&self, group: &str) -> &[String] {
        self.upstreams.get(group).map_or(&[], Vec::as_slice)
    }
}

/// As `ngx_http_core_find_location` does: the longest prefix; unless it is `^~`, the first pattern; within it the same.
fn find<'a>(block: &'a [Directive], path: &str, matcher: &mut Matcher) -> Option<&'a [Directive]> {
    let locations: Vec<&Directive> = block.iter().filter(|d| d.words[0] == "location").collect();
    let mut longest: Option<(&Directive, &str, bool)> = None;
    for location in &locations {
        let (prefix, stops) = match location.words[1].as_str() {
            "=" if location.words[2] == path => return Some(&location.block),
            "=" | "~" | "~*" => continue,
            "^~" => (location.words[2].as_str(), true),
            prefix => (prefix, false),
        };
        let longer = longest.is_none_or(|(_, known, _)| prefix.len() > known.len());
        if path.starts_with(prefix) && longer {
            longest = Some((location, prefix, stops));
        }
    }
    if longest.is_none_or(|(_, _, stops)| !stops) {
        let pattern = locations
            .iter()
            .find(|d| d.words[1] == "~" && matcher.matches(&d.words[2], path));
        if let Some(location) = pattern {
            return Some(&location.block);
        }
    }
    let (location, ..) = longest?;
    Some(find(&location.block, path, matcher).unwrap_or(&location.block))
}

/// Blocks in which each include of a rendered file stands as what it holds.
fn included(block: Vec<Directive>, files: &BTreeMap<&str, Vec<Directive>>) -> Vec<Directive> {
    block
        .into_iter()
        .flat_map(|directive| {
            let file = match directive.words.as_slice() {
                [include, file] if include == "include" => files.get(file.as_str()),
                _ => None,
            };
            match file {
                Some(file) => included(file.clone(), files),
                None => vec![Directive {
                    block: included(directive.block, files),
                    ..directive
                }],
            }
        })
        .collect()
}

/// Words, and `{`, `}` and `;` as words of their own, marked by a leading NUL.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            '{' | '}' | ';' => words.push(format!("\0{c}")),
            '"' | '\'' => {
                let mut word = String::new();
                while let Some(next) = chars.next_if(|next| *next != c) {
                    if next == '\\' && chars.peek() == Some(&c) {
                        continue;
                    }
                    word.push(next);
                }
                chars.next();
                words.push(word);
            }
            c => {
                let mut word = c.to_string();
                while let Some(next) = chars.next_if(|c| !c.is_whitespace() && *c != ';') {
                    word.push(next);
                }
                words.push(word);
            }
        }
    }
    words
}

fn blocks(words: &mut impl Iterator<Item = String>) -> Vec<Directive> {
    let mut directives = Vec::new();
    let mut current = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "\0}" => break,
            "\0;" => directives.push(Directive {
                words: std::mem::take(&mut current),
                block: Vec::new(),
            }),
            "\0{" => directives.push(Directive {
                words: std::mem::take(&mut current),
                block: blocks(words),
            }),
            _ => current.push(word),
        }
    }
    directives
}
