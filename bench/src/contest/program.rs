//! A contestant's program: where it is and which version. It is found and asked, never installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::Fault;

/// Debian keeps servers in sbin, which is not in everyone's `PATH`.
const SERVER_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A program that can be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// What it says of itself, without its name.
    pub version: String,
}

impl Program {
    /// At `given`, or by its name in `PATH` and the servers' folders. Errors: [`Fault::Missing`] with `help`.
    pub(super) fn find(
        name: &str,
        given: Option<&Path>,
        version_flag: &str,
        help: &str,
    ) -> Result<Self, Fault> {
        let Some(path) = given.map(Path::to_owned).or_else(|| in_path(name)) else {
            return Err(Fault::Missing(format!("there is no {name} in PATH; {help}")));
        };
        let said = said_by(&path, &[version_flag])?;
        Ok(Self { version: version_in(&said), path })
    }
}

/// What a program prints on both outputs. Errors: [`Fault::Missing`] if it cannot be run.
pub(super) fn said_by(path: &Path, arguments: &[&str]) -> Result<String, Fault> {
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Fault::Missing(format!("{} cannot be run: {error}", path.display())))?;
    Ok(format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SERVER_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The first word of the first line that has a digit and a dot in it.
fn version_in(said: &str) -> String {
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let is_version =
        |word: &&str| word.contains('.') && word.contains(|character: char| character.is_ascii_digit());
    let word = line.split_ascii_whitespace().find(is_version);
    word.map_or_else(|| "unknown".to_owned(), |word| word.rsplit('/').next().unwrap_or(word).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(version_in("nginx version: nginx/1.22.1\nbuilt by gcc 12.2.0"), "1.22.1");
        assert_eq!(
            version_in("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"),
            "2.6.12-1+deb12u4"
        );
        assert_eq!(version_in("\n2.6.2\n"), "2.6.2");
        assert_eq!(version_in("millrace-dataplane 0.1.0"), "0.1.0");
        assert_eq!(version_in("usage: something"), "unknown");
    }

    #[test]
    fn a_program_that_is_not_there_says_what_to_do() {
        let missing = Program::find("no-such-proxy", None, "-v", "apt-get install it").unwrap_err();
        assert!(missing.to_string().contains("apt-get install it"), "{missing}");
        let given = Path::new("/nonexistent/haproxy");
        assert!(matches!(Program::find("haproxy", Some(given), "-v", ""), Err(Fault::Missing(_))));
    }
}
