//! Runs what the fuzz targets run, on stable: over the kept corpus, and over some thousand mutations of it. A failure prints the seed;
//! `FUZZ_SEED=… cargo test --test fuzz_corpus` replays it.
//!
//! `UPDATE_CORPUS=1` writes the rows of the tables into the corpus anew; what a fuzzer found is kept beside them under its own name.
#![allow(clippy::disallowed_methods, reason = "the corpus is files; the core itself touches none")]
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a test that fails")]

mod h1_table;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::{env, fs};

use dataplane_core::fuzz;
use h1_table::Row;

/// Longer rows are about limits, which the fuzz functions have their own of.
const FILE_BYTES_MAX: usize = 1024;

/// How many mutations of each target's corpus are run; `FUZZ_MUTATIONS` changes it.
const MUTATIONS: u64 = 4000;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 3] = [
    ("head_request", fuzz::head_request),
    ("head_response", fuzz::head_response),
    ("chunked", fuzz::chunked),
];

#[test]
fn nothing_in_the_corpus_breaks_an_invariant() {
    for (target, run) in TARGETS {
        let files = corpus(target);
        assert!(files.len() >= 10, "{target}: only {} files", files.len());
        files.values().for_each(|bytes| run(bytes));
    }
}

#[test]
fn no_mutation_of_the_corpus_breaks_an_invariant() {
    let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("FUZZ_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let mutations = number("FUZZ_MUTATIONS").unwrap_or(MUTATIONS);
    eprintln!("FUZZ_SEED={seed}");
    for (target, run) in TARGETS {
        let files: Vec<_> = corpus(target).into_values().collect();
        let mut random = Random(seed | 1);
        for _ in 0..mutations {
            run(&random.mutated(&files));
        }
    }
}

/// The corpus follows the tables: a new row is a new seed for the fuzzer.
#[test]
fn the_corpus_has_every_row_of_the_tables() {
    let update = env::var_os("UPDATE_CORPUS").is_some();
    for (target, name, bytes) in table_files() {
        let path = folder(target).join(&name);
        if update {
            fs::create_dir_all(folder(target)).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let kept = fs::read(&path).unwrap_or_default();
        assert!(kept == bytes, "{}: not as in the table; UPDATE_CORPUS=1 writes it", path.display());
    }
}

fn table_files() -> Vec<(&'static str, String, Vec<u8>)> {
    let (requests, responses) = (h1_table::requests(), h1_table::responses());
    let requests = requests.iter().filter(|row| row.raw.len() <= FILE_BYTES_MAX);
    let responses = responses.iter().filter(|row| row.raw.len() <= FILE_BYTES_MAX);
    let chunked = requests
        .clone()
        .filter(|row| row.expect() == "body_refused" || row.text("length") == Some("chunked"));
    let mut files = Vec::new();
    files.extend(requests.map(|row| ("head_request", row.name().to_owned(), row.raw.clone())));
    files.extend(responses.map(|row| ("head_response", row.name().to_owned(), with_choice(row))));
    files.extend(chunked.map(|row| ("chunked", row.name().to_owned(), body_of(&row.raw))));
    files
}

/// The first byte of a `head_response` input says what was asked.
fn with_choice(row: &Row) -> Vec<u8> {
    let is_head = row.text("method") == Some("HEAD");
    let is_upgrade = row.column("asked_upgrade").is_some();
    let choice = b'0' + u8::from(is_head) + 2 * u8::from(is_upgrade);
    [&[choice], &row.raw[..]].concat()
}

fn body_of(raw: &[u8]) -> Vec<u8> {
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    raw[end + 4..].to_vec()
}

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn corpus(target: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn mutated(&mut self, files: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = files[self.below(files.len())].clone();
        for _ in 0..=self.below(4) {
            let other = &files[self.below(files.len())];
            self.mutate(&mut bytes, other);
        }
        bytes
    }

    /// One change of the kinds that have broken parsers: a byte changed, a delimiter put in, a piece lost, doubled or from elsewhere.
    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        const DELIMITERS: &[u8] = b"\r\n :;,\t\0\x7f0aF";
        let at = self.below(bytes.len() + 1);
        let len = self.below(16).min(bytes.len() - at);
        match self.below(5) {
            0 if len > 0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes.insert(at, DELIMITERS[self.below(DELIMITERS.len())]),
            2 => drop(bytes.drain(at..at + len)),
            3 => bytes.extend_from_within(at..at + len),
            _ => {
                let from = self.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}
