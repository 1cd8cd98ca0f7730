//! What `docs/security.md` says of tests: each one that it names is there, and no class of attack is without.
//!
//! In the last column of a table, `` `package`: `module::test`, `module` `` names a test, or a module in which there are some. A package
//! is a crate, one of the tests of the whole, or `fuzz`, whose targets are named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tests::programs::checkout;

/// Classes of attack that must each have a test.
const CLASSES: u32 = 13;

/// A test that a document names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    package: String,
    name: String,
}

/// The claims in the last cell of a row.
fn claims(row: &str) -> Vec<Claim> {
    let cell = row.trim().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
    let pieces: Vec<&str> = cell.split('`').collect();
    let mut package = String::new();
    let mut found = Vec::new();
    // What is quoted stands at odd places.
    for at in (1..pieces.len()).step_by(2) {
        let quoted = pieces[at].to_owned();
        if pieces.get(at + 1).is_some_and(|after| after.starts_with(':')) {
            package = quoted;
        } else {
            found.push(Claim { package: package.clone(), name: quoted });
        }
    }
    found
}

/// Where the sources of a package's tests are.
fn folders(package: &str) -> Vec<PathBuf> {
    let whole = checkout().join("tests/tests").join(package);
    let folders = [whole, checkout().join(package).join("src"), checkout().join(package).join("tests")];
    folders.into_iter().filter(|folder| folder.is_dir()).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The functions that are tests in a source, by their attribute or because a macro makes them such.
fn functions(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let rest = line.trim_start().strip_prefix("fn ")?;
        rest.split_once('(').map(|(name, _)| name.to_owned())
    };
    let (mut marked, mut within, mut found) = (false, false, Vec::new());
    for line in text.lines() {
        match line.trim() {
            "#[test]" | "#[tokio::test]" => marked = true,
            "netns_test! {" => within = true,
            _ if line == "}" => within = false,
            // One that is not run shows nothing.
            attribute if attribute.starts_with("#[ignore") => marked = false,
            _ => {
                let indented = within && line.starts_with("    fn ");
                if let Some(name) = name(line) {
                    found.extend((marked || indented).then_some(name));
                    marked = false;
                }
            }
        }
    }
    found
}

/// All tests of a package, each as the words of its path, without those that say nothing.
fn tests(package: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for folder in folders(package) {
        let mut files = Vec::new();
        sources(&folder, &mut files);
        for file in files {
            let inside = file.strip_prefix(&folder).expect("it was found there").with_extension("");
            let words = inside.iter().map(|word| word.to_string_lossy().into_owned());
            let module: Vec<String> = words.filter(|word| word != "tests" && word != "mod").collect();
            let text = fs::read_to_string(&file).expect("a source is text");
            all.extend(functions(&text).into_iter().map(|name| [module.clone(), vec![name]].concat()));
        }
    }
    all
}

/// Whether there is such a target.
fn is_fuzzed(name: &str) -> bool {
    let mut files = Vec::new();
    sources(&checkout().join("fuzz/src"), &mut files);
    let quoted = format!("\"{name}\"");
    files.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(&quoted)))
}

/// Whether there is what a claim names.
fn holds(claim: &Claim) -> bool {
    if claim.package == "fuzz" {
        return is_fuzzed(&claim.name);
    }
    let words: Vec<&str> = claim.name.split("::").filter(|word| *word != "tests").collect();
    let ends = |path: &[String]| {
        path.len() >= words.len() && path[path.len() - words.len()..].iter().eq(words.iter().copied())
    };
    let tests = tests(&claim.package);
    tests.iter().any(|path| ends(path) || ends(&path[..path.len() - 1]))
}

fn rows() -> Vec<String> {
    let text = fs::read_to_string(checkout().join("docs/security.md")).expect("the document is there");
    let (_, tests) = text.split_once("\n## The tests").expect("it says which tests there are");
    let (tests, _) = tests.split_once("\n## What else").expect("and what else is looked at");
    tests.lines().filter(|line| line.starts_with("| ")).map(str::to_owned).collect()
}

#[test]
fn every_test_that_is_named_is_there() {
    let claims: Vec<Claim> = rows().iter().flat_map(|row| claims(row)).collect();
    assert!(claims.len() > 50, "{} tests are named", claims.len());
    let missing: Vec<&Claim> = claims.iter().filter(|claim| !holds(claim)).collect();
    assert!(missing.is_empty(), "docs/security.md names what is not there: {missing:#?}");
}

#[test]
fn every_class_of_attack_has_a_test() {
    let mut classes = BTreeMap::new();
    for row in rows() {
        let first = row.trim_start_matches('|').split('|').next().unwrap_or_default();
        if let Ok(number) = first.trim().parse::<u32>() {
            classes.insert(number, claims(&row).len());
        }
    }
    let wanted: Vec<u32> = (1..=CLASSES).collect();
    assert_eq!(classes.keys().copied().collect::<Vec<_>>(), wanted);
    assert!(classes.values().all(|tests| *tests > 0), "{classes:?}");
}

#[test]
fn what_is_not_there_is_found_out() {
    let claim = |package: &str, name: &str| Claim { package: package.into(), name: name.into() };
    assert!(holds(&claim("probe", "hostile::rings_of_any_device_may_lie")));
    assert!(holds(&claim("device", "bus::tests")));
    assert!(!holds(&claim("probe", "hostile::rings_of_no_device_may_lie")));
    assert!(!holds(&claim("probe", "disk::rings_of_any_device_may_lie")));
    assert!(!holds(&claim("nowhere", "hostile")));
    assert!(!holds(&claim("fuzz", "no-such-target")));
    let row = "| 1 | what | `a`: `b::c`, `d`; `e`: `f` |";
    assert_eq!(claims(row), [claim("a", "b::c"), claim("a", "d"), claim("e", "f")]);
    assert_eq!(functions("#[test]\n#[ignore = \"x\"]\nfn a() {\n}\n#[test]\nfn b() {"), ["b"]);
}
