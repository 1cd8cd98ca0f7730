//! Writes the manual pages and shell completions of the programs into `docs/`, from the definitions that parse their options.
//!
//! `cargo run -p docs-gen` writes; `cargo test -p docs-gen` says whether what is there is up to date. No program that is shipped
//! needs this crate.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Everything that is generated, by its path below `docs/`.
fn files() -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for command in [vmm::cli::command(), ch_remote::command()] {
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command.clone(), &name, &mut text);
            let file = match shell {
                Shell::Zsh => format!("_{name}"),
                Shell::Fish => format!("{name}.fish"),
                _ => name.clone(),
            };
            files.insert(PathBuf::from(format!("completions/{shell}/{file}")), text);
        }
        pages(command, &name, &mut files)?;
    }
    Ok(files)
}

/// The page of a command, and one for each of its subcommands.
fn pages(command: Command, name: &str, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let full = format!("{name}-{}", subcommand.get_name());
        let subcommand = subcommand.clone().name(full.clone()).version(env!("CARGO_PKG_VERSION"));
        pages(subcommand, &full, files)?;
    }
    let mut text = Vec::new();
    Man::new(command.disable_help_subcommand(true)).render(&mut text)?;
    files.insert(PathBuf::from(format!("man/{name}.1")), text);
    Ok(())
}

/// `docs/` of this checkout.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn main() -> io::Result<()> {
    for (path, text) in files()? {
        let path = directory().join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_docs_is_what_the_programs_say() {
        for (path, text) in files().unwrap() {
            let there = std::fs::read(directory().join(&path)).unwrap_or_default();
            assert!(there == text, "docs/{} is out of date: cargo run -p docs-gen", path.display());
        }
    }

    #[test]
    fn pages_name_every_flag_and_command() {
        let files = files().unwrap();
        let page = |name: &str| String::from_utf8(files[Path::new(name)].clone()).unwrap();
        let flags = page("man/cloud-hypervisor.1").replace('\\', "");
        for flag in
            vmm::cli::command().get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long())
        {
            assert!(flags.contains(&format!("--{flag}")), "{flag}");
        }
        for command in ch_remote::command().get_subcommands() {
            assert!(files.contains_key(Path::new(&format!("man/ch-remote-{}.1", command.get_name()))));
        }
    }
}
