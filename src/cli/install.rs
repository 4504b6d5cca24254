//! `completions` and `man`: printed, for whoever packages or installs it.

use clap::{CommandFactory as _, Subcommand};
use clap_complete::Shell;

use super::Cli;

/// The verbs.
#[derive(Debug, Clone, Subcommand)]
pub enum InstallVerb {
    /// Print the completion script of a shell
    #[command(
        after_help = "Examples:\n  run_supervisor completions bash > /etc/bash_completion.d/run_supervisor\n  \
                      run_supervisor completions zsh > ~/.zfunc/_run_supervisor"
    )]
    Completions {
        /// Which shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page: of the command, or of one verb
    #[command(
        after_help = "Examples:\n  run_supervisor man > /usr/local/share/man/man1/run_supervisor.1\n  \
                            run_supervisor man parked | man -l -"
    )]
    Man {
        /// The verb
        #[arg(value_name = "VERB")]
        verb: Option<String>,
    },
}

impl InstallVerb {
    /// The script, or the page.
    ///
    /// # Errors
    /// A verb that there is not.
    pub fn print(&self) -> Result<String, String> {
        let mut command = Cli::command();
        let mut text = vec![];
        match self {
            Self::Completions { shell } => {
                let name = command.get_name().to_owned();
                clap_complete::generate(*shell, &mut command, name, &mut text);
            }
            Self::Man { verb } => {
                // So that flags which every verb takes, and the whole names, are known.
                command.build();
                let page = match verb {
                    None => command,
                    Some(verb) => command
                        .find_subcommand(verb)
                        .cloned()
                        .ok_or_else(|| format!("there is no verb {verb}; see --help"))?,
                };
                clap_mangen::Man::new(page).render(&mut text).map_err(|error| error.to_string())?;
            }
        }
        String::from_utf8(text).map_err(|error| error.to_string())
    }
}
