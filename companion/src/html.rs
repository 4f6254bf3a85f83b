//! `--html`: a report as one page, for people who would rather look than read.
//!
//! The page holds everything itself: no script, no font, no picture from elsewhere. It is light or dark as the reader's
//! system is. Names come out of a log, so every text is escaped.

mod plot;

use std::fmt::{Display, Write as _};
use std::path::Path;

use crate::diagnostic::Diagnostic;

pub(crate) use plot::{Bars, Lines};

const STYLE: &str = "\
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0; --tile: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e4e8ec; --soft: #9aa5b1; --line: #333b44; --tile: #1e2329; }
}
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; } p { margin: .4rem 0; }
.soft, figcaption { color: var(--soft); } .scroll { overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; padding: 0; list-style: none; }
.tiles li { background: var(--tile); border-radius: .5rem; padding: .6rem 1rem; min-width: 8rem; }
.tiles b { display: block; font-size: 1.3rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin: 0 .3rem 0 .9rem; }
code { font-family: ui-monospace, monospace; }
";

/// A page that is being written.
#[derive(Debug)]
pub(crate) struct Page {
    title: String,
    body: String,
}

impl Page {
    /// Begins one.
    pub(crate) fn new(title: &str, below: &str) -> Self {
        let body = format!(
            "<h1>{}</h1>\n<p class=\"soft\">{}</p>\n",
            escaped(title),
            escaped(below)
        );
        Self {
            title: title.to_owned(),
            body,
        }
    }

    /// Large figures with what they are.
    pub(crate) fn tiles(&mut self, tiles: &[(&str, String)]) {
        self.put("<ul class=\"tiles\">\n");
        for (what, figure) in tiles {
            self.put(&format!(
                "<li><b>{}</b>{}</li>\n",
                escaped(figure),
                escaped(what)
            ));
        }
        self.put("</ul>\n");
    }

    /// A heading.
    pub(crate) fn heading(&mut self, text: &str) {
        self.put(&format!("<h2>{}</h2>\n", escaped(text)));
    }

    /// A paragraph.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.put(&format!("<p>{}</p>\n", escaped(text)));
    }

    /// A table; the first column is text, the others are figures.
    pub(crate) fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        self.put("<div class=\"scroll\"><table>\n<tr>");
        head.iter()
            .for_each(|cell| self.put(&format!("<th>{}</th>", escaped(cell))));
        self.put("</tr>\n");
        for row in rows {
            self.put("<tr>");
            row.iter()
                .for_each(|cell| self.put(&format!("<td>{}</td>", escaped(cell))));
            self.put("</tr>\n");
        }
        self.put("</table></div>\n");
    }

    /// Bars with their caption.
    ///
    /// # Errors
    /// It cannot be drawn.
    pub(crate) fn bars(&mut self, caption: &str, bars: &Bars) -> Result<(), Diagnostic> {
        let svg = bars.svg().map_err(undrawn)?;
        self.figure(caption, &bars.names, &svg);
        Ok(())
    }

    /// Lines with their caption.
    ///
    /// # Errors
    /// They cannot be drawn.
    pub(crate) fn lines(&mut self, caption: &str, lines: &Lines) -> Result<(), Diagnostic> {
        let svg = lines.svg().map_err(undrawn)?;
        let names: Vec<String> = lines.lines.iter().map(|(name, _)| name.clone()).collect();
        self.figure(caption, &names, &svg);
        Ok(())
    }

    fn figure(&mut self, caption: &str, names: &[String], svg: &str) {
        self.put(&format!("<figure>\n<figcaption>{}", escaped(caption)));
        for (index, name) in names.iter().enumerate().filter(|_| names.len() > 1) {
            let color = plot::color_of(index);
            self.put(&format!(
                " <span class=\"key\" style=\"background:{color}\"></span>{}",
                escaped(name)
            ));
        }
        self.put(&format!("</figcaption>\n{svg}\n</figure>\n"));
    }

    /// Writes it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, file: &Path) -> Result<(), Diagnostic> {
        let title = escaped(&self.title);
        let text = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
            self.body
        );
        std::fs::write(file, text).map_err(|error| {
            Diagnostic::error(format!("cannot write {}: {error}", file.display()))
                .fix("name a file in a folder that you may write to")
        })
    }

    fn put(&mut self, text: &str) {
        self.body.push_str(text);
    }
}

fn undrawn(why: String) -> Diagnostic {
    Diagnostic::error(format!("a plot cannot be drawn: {why}"))
}

/// As HTML has it.
fn escaped(text: impl Display) -> String {
    let mut safe = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' | '\'' => {
                // Writing to a String cannot fail.
                let _ = write!(safe, "&#{};", c as u32);
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_log_holds_is_text_on_the_page() {
        let evil = "<script>alert('x')</script>\" onload=\"";
        let mut page = Page::new(evil, evil);
        page.tiles(&[("x", evil.to_owned())]);
        page.table(&["x"], &[vec![evil.to_owned()]]);
        let bars = Bars {
            labels: vec![evil.to_owned()],
            names: vec!["a".to_owned(), evil.to_owned()],
            values: vec![vec![1.0], vec![2.0]],
            unit: "",
        };
        page.bars(evil, &bars).unwrap();
        let lines = Lines {
            lines: vec![
                (evil.to_owned(), vec![(0.0, 1.0), (1.0, 2.0)]),
                ("b".to_owned(), vec![]),
            ],
            moments: false,
            mark: None,
        };
        page.lines(evil, &lines).unwrap();
        assert!(
            !page.body.contains("<script") && !page.body.contains("\" onload"),
            "{}",
            page.body
        );
        assert_eq!(page.body.matches("<svg").count(), 2);
    }

    #[test]
    fn text_in_plots_has_the_color_of_the_page() {
        let bars = Bars {
            labels: vec!["sync1".to_owned()],
            names: vec!["now".to_owned()],
            values: vec![vec![0.0]],
            unit: "%",
        };
        let svg = bars.svg().unwrap();
        assert!(
            svg.contains("currentColor") && !svg.contains(plot::INK_TEXT),
            "{svg}"
        );
        assert!(svg.contains("sync1"), "{svg}");
    }
}
