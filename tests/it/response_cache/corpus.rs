//! The corpus of the fuzzer, without one: every text of it, and what comes of cutting and joining them.

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/exchange.rs"]
mod exchange;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/exchange");
    let files = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_exchange_of_the_corpus_keeps_the_rules() {
    let corpus = corpus();
    assert!(corpus.len() > 20);
    for text in &corpus {
        exchange::run(text);
    }
}

#[test]
fn exchanges_of_lines_from_several_texts_keep_the_rules() {
    let corpus = corpus();
    let mut state = 11_u64;
    let mut below = |most: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % most
    };
    for _ in 0..2_000 {
        let (one, two) = (&corpus[below(corpus.len())], &corpus[below(corpus.len())]);
        // The request of one with the answer of the other, and a byte that is another one.
        let split = |text: &[u8]| text.windows(2).position(|pair| pair == b"\n\n").unwrap() + 2;
        let mut text = [&one[..split(one)], &two[split(two)..]].concat();
        let at = below(text.len());
        text[at] = below(256) as u8;
        exchange::run(&text);
    }
}

#[test]
fn heads_that_are_read_are_written_the_same() {
    exchange::decode(&[]);
    exchange::decode(&[1; 300]);
    let numbers = [1, 0].into_iter().chain([0; 13 * 8 + 4 * 6]);
    exchange::decode(&numbers.collect::<Vec<u8>>());
}
