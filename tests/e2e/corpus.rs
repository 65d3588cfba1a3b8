//! What fuzzers have found worth keeping, given to those who read data from
//! outside: none of it may panic. How to fuzz stands in `tests/fuzz/Cargo.toml`.

#[path = "../fuzz/targets.rs"]
mod targets;

use crate::harness::root;

#[test]
fn whoever_reads_data_from_outside_withstands_the_kept_corpus() {
    for (name, target) in targets::TARGETS {
        let folder = root().join("tests/fuzz/corpus").join(name);
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 3, "{}: {}", folder.display(), files.len());
        for file in files {
            println!("{}", file.display());
            let bytes = std::fs::read(&file).unwrap();
            target(&bytes);
            // Also cut off, and with a byte that is wrong.
            target(&bytes[..bytes.len() / 2]);
            let mut wrong = bytes.clone();
            let middle = wrong.len() / 2;
            wrong.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 0x55);
            target(&wrong);
        }
    }
}
