//! `millrace-master`: the master's command line. Exit codes: 0 good, 1 failed at run time, 2 unusable arguments or config.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use master_lite::config::Config;
use master_lite::server::{self, Beginning, Failure};

/// Millrace master: configs, nodes and commands of a fleet of edges.
#[derive(Parser)]
#[command(name = "millrace-master", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Make a new store where one is missing, although keys of an earlier master are there: its users, nodes and configs
        /// are given up. Refused where there is a store.
        #[arg(long)]
        begin_anew: bool,
    },
    /// Check a config: errors as file:line:column.
    Check(ConfigFile),
    /// Copy the store of a master that does not run; a running one gives a copy under /api/v1/backup.
    Backup {
        /// Where to; must not be there yet.
        file: PathBuf,
        #[command(flatten)]
        source: Source,
    },
    /// Give a user a new password, of a master that does not run: the way back in when nobody can log in any more.
    ResetPassword {
        /// Whose; the only admin's unless given.
        user: Option<String>,
        #[command(flatten)]
        source: Source,
    },
    /// Put a backup in the place of the store of a master that does not run.
    Restore {
        /// What `backup` or /api/v1/backup gave.
        file: PathBuf,
        #[command(flatten)]
        source: Source,
    },
}

/// Where the config is, without `-c` too: these commands take no other file.
#[derive(Args)]
struct ConfigFile {
    #[command(flatten)]
    source: Source,
    /// The config file, as with -c.
    #[arg(conflicts_with = "config")]
    file: Option<PathBuf>,
}

impl ConfigFile {
    fn source(self) -> Source {
        Source { config: self.source.config.or(self.file), ..self.source }
    }
}

#[derive(Args)]
struct Source {
    /// The config file; without it the defaults hold.
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Where the store and the keys are; made if it is not there.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { file, begin_anew } => {
            let beginning = if begin_anew { Beginning::Anew } else { Beginning::Usual };
            read(&file.source()).and_then(|config| server::run(&config, beginning))
        }
        Command::Check(file) => read(&file.source()).map(|_| say("good")),
        Command::Backup { file, source } => {
            read(&source).and_then(|config| server::back_up(&config, &file)).map(|()| say("written"))
        }
        Command::ResetPassword { user, source } => read(&source)
            .and_then(|config| server::reset_password(&config, user.as_deref()))
            .map(|told| say(&told)),
        Command::Restore { file, source } => {
            read(&source).and_then(|config| server::restore(&config, &file)).map(|kept| say(&kept))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => complain(&message, 1),
        Err(Failure::Unusable(message)) => complain(&message, 2),
    }
}

fn read(source: &Source) -> Result<Config, Failure> {
    let config = match &source.config {
        Some(path) => Config::read(path).map_err(Failure::Unusable)?,
        None => Config::default(),
    };
    Ok(config.with_data_dir(source.data_dir.clone()))
}

/// A reader that went away is no failure.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

fn complain(message: &str, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "{}", message.trim_end());
    ExitCode::from(code)
}
