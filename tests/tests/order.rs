//! Whether the linker lays the program out by functions that it has: `vmm/functions.order` against the program for release, as
//! `cargo build --release` leaves it. Other builds have other names.

use std::fs;
use std::path::PathBuf;

use tests::functions::{Functions, Order, RECORDS, compiler};
use tests::programs;

fn list() -> Order {
    let path = programs::checkout().join("vmm/functions.order");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Order::read(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_program_has_the_functions_that_the_linker_was_told_of() {
    let (list, program) = (list(), programs::released());
    let built_by = compiler(&program).unwrap();
    if built_by != list.compiler {
        // Not a name of any crate is the same then, whatever the list.
        println!(
            "SKIPPED: vmm/functions.order is of a program by {}, and this one is by {built_by}: {RECORDS} writes it anew",
            list.compiler
        );
        return;
    }
    match list.check(&Functions::of(&program).unwrap()) {
        Ok(stale) => println!("{stale} of {} functions are not in {}", list.names.len(), program.display()),
        Err(e) => panic!("{}: {e}", program.display()),
    }
}

/// A program that is there whatever was built: this one.
fn program() -> PathBuf {
    std::env::current_exe().expect("a test knows its own path")
}

/// A list of a hundred functions, of which so many were in an older program only.
fn aged(functions: &Functions, stale: usize) -> Order {
    let name = |(n, name): (usize, &str)| if n < stale { format!("{name}.older") } else { name.to_owned() };
    let names: Vec<String> = functions.names().take(100).enumerate().map(name).collect();
    assert_eq!(names.len(), 100);
    Order { compiler: compiler(&program()).expect("rustc made it"), names }
}

#[test]
fn a_list_of_an_older_program_is_told_from_one_of_this() {
    let functions = Functions::of(&program()).unwrap();
    assert_eq!(aged(&functions, 0).check(&functions), Ok(0));
    assert_eq!(aged(&functions, 5).check(&functions), Ok(5));
    for stale in [6, 100] {
        let e = aged(&functions, stale).check(&functions).unwrap_err();
        assert!(e.starts_with(&format!("{stale} of the 100 functions")) && e.contains(RECORDS), "{e}");
        assert!((1..=5).contains(&e.matches(".older").count()), "{e}");
    }
}

#[test]
fn what_is_written_is_read_again_and_half_a_list_is_none() {
    let (list, mut text) = (aged(&Functions::of(&program()).unwrap(), 0), Vec::new());
    list.write(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let read = Order::read(&text).unwrap();
    assert_eq!((&read.names, &read.compiler), (&list.names, &list.compiler));
    let comments = text.lines().filter(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n");
    for (part, lacks) in [(comments.as_str(), "functions"), ("main\n", "compiler"), ("", "compiler")] {
        let e = Order::read(part).map(|_| ()).unwrap_err().to_string();
        assert!(e.starts_with(&format!("the list has no {lacks}")), "{e}");
    }
}
