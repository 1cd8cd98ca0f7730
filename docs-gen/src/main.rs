//! Writes the manual pages and shell completions of the programs into `docs/`, from the definitions that parse their options.
//!
//! `cargo run -p docs-gen` writes; `cargo test -p docs-gen` says whether what is there is up to date. No program that is shipped
//! needs this crate.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Command};
use clap_complete::Shell;
use clap_mangen::Man;

/// Everything that is generated, by its path below `docs/`.
fn files() -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let daemons = [vhost_user_block::command(), vhost_user_net::command()];
    for command in [visible(vmm::cli::command()), ch_remote::command()].into_iter().chain(daemons) {
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

/// The command without the flags that are known only to be refused: completions would offer them.
fn visible(full: Command) -> Command {
    let mut command = Command::new(full.get_name().to_owned())
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .args(full.get_arguments().filter(|a| !a.is_hide_set()).cloned())
        // What flags of a machine require.
        .group(ArgGroup::new("vm-source").arg("kernel"))
        .group(ArgGroup::new("ruled").arg("kernel"));
    if let Some(about) = full.get_about() {
        command = command.about(about.clone());
    }
    if let Some(about) = full.get_long_about() {
        command = command.long_about(about.clone());
    }
    if let Some(help) = full.get_after_long_help() {
        command = command.after_long_help(help.clone());
    }
    command
}

/// Keeps the lines of tables, which are indented, from being filled.
fn unfilled(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut table = false;
    for line in page.lines() {
        if line.starts_with("  ") != table {
            table = !table;
            text.push_str(if table { ".nf\n" } else { ".fi\n" });
        }
        text.push_str(line);
        text.push('\n');
    }
    text
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
    let text = unfilled(&String::from_utf8_lossy(&text));
    files.insert(PathBuf::from(format!("man/{name}.1")), text.into_bytes());
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
