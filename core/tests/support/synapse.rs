//! The installed Synapse, asked over a pipe which token it takes from a request (tokens_of_synapse.py, beside this file).

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A Python process with Synapse's code in it.
pub(crate) struct Synapse {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Synapse {
    /// Starts `python`, that of a virtualenv with Synapse in it, on `program`, which is tokens_of_synapse.py.
    pub(crate) fn start(python: &str, program: &str) -> Self {
        let mut process = Command::new(python)
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the Python of Synapse's virtualenv starts");
        let questions = process.stdin.take().expect("stdin is a pipe");
        let answers = BufReader::new(process.stdout.take().expect("stdout is a pipe"));
        Self {
            process,
            questions,
            answers,
        }
    }

    /// The token that Synapse takes from a request with these `Authorization` headers and this query.
    pub(crate) fn access_token(&mut self, headers: &[Vec<u8>], args: &[u8]) -> Option<Vec<u8>> {
        let mut head = b"GET /_matrix/client/v3/sync".to_vec();
        if !args.is_empty() {
            head.push(b'?');
            head.extend(args);
        }
        head.extend(b" HTTP/1.1\r\nHost: example.org\r\n");
        for value in headers {
            head.extend(b"Authorization:");
            head.extend(value);
            head.extend(b"\r\n");
        }
        head.extend(b"\r\n");
        let length = u32::try_from(head.len()).expect("a head is short");
        let mut question = length.to_be_bytes().to_vec();
        question.append(&mut head);
        self.questions
            .write_all(&question)
            .expect("Synapse's process reads");
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("Synapse's process answers");
        match line.trim_end_matches('\n').split_once(' ') {
            Some(("token", hex)) => Some(from_hex(hex)),
            Some(("none", _)) => None,
            _ => panic!("Synapse's process said {line:?}; see what it wrote above"),
        }
    }
}

impl Drop for Synapse {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|two| {
            let two = std::str::from_utf8(two).expect("hex is ASCII");
            u8::from_str_radix(two, 16).expect("hex digits")
        })
        .collect()
}

/// Whether the byte may stand in a query that comes so far. nginx refuses spaces and control characters, and a `#` ends the query.
/// Twisted refuses a request with a byte above 176 (twisted/web/http.py, `_parseRequestLine`), whoever sends it.
pub(crate) fn in_query(byte: u8) -> bool {
    (b'!'..=176).contains(&byte) && byte != 0x7f && byte != b'#'
}

/// Whether the byte may stand in a header's value.
pub(crate) fn in_header(byte: u8) -> bool {
    !b"\0\r\n".contains(&byte)
}

/// What Synapse's token is to this project: one that can be looked up, or none.
pub(crate) fn usable(token: Option<Vec<u8>>) -> Option<Vec<u8>> {
    token
        .filter(|token| (1..=4096).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic))
}
