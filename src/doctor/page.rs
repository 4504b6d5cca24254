//! The report as people read it: a line per check, at most 80 columns wide, and below the red ones what helps.

use anstyle::{AnsiColor, Style};

use super::{Finding, Mark, Report};
use crate::cli::wrapped;

const COLUMNS_MAX: usize = 80;
/// The longest name, "schema drift", and a space.
const NAME_COLUMNS: usize = 13;
const INDENT: &str = "    ";
const COMMAND_INDENT: &str = "      ";

pub(super) fn render(report: &Report, coloured: bool) -> String {
    let mut page = Page { text: String::new(), coloured };
    for finding in &report.checks {
        page.finding(finding);
    }
    let Report { red, green, not_looked_at, .. } = report;
    let outcome = if report.is_good() { Mark::Green } else { Mark::Red };
    page.styled(style(outcome), &format!("{red} red, {green} green, {not_looked_at} not looked at"));
    page.text.push('\n');
    page.text
}

struct Page {
    text: String,
    coloured: bool,
}

impl Page {
    fn finding(&mut self, finding: &Finding) {
        let mark = match finding.mark {
            Mark::Green => "✓",
            Mark::Red => "✗",
            Mark::NotLookedAt => "–",
        };
        self.styled(style(finding.mark), mark);
        let text = crate::cli::on_one_line(&finding.finding);
        let line = format!(" {:<NAME_COLUMNS$}{text}", finding.check.name());
        let line = line.trim_end();
        let fits = line.chars().count() < COLUMNS_MAX;
        if fits {
            self.text += line;
        } else {
            self.text.extend(line.chars().take(COLUMNS_MAX - 2));
            self.text.push('…');
        }
        self.text.push('\n');
        if !fits && finding.mark == Mark::Red {
            self.paragraph(&text, INDENT);
        }
        for detail in &finding.details {
            self.paragraph(detail, INDENT);
        }
        let Some(remedy) = &finding.remedy else { return };
        self.paragraph(&format!("→ {}", remedy.text), INDENT);
        if let Some(command) = &remedy.shell {
            self.command(command);
        }
        if let Some(sql) = &remedy.sql {
            self.paragraph(&format!("{sql};"), COMMAND_INDENT);
        }
    }

    /// Wrapped between words; a word that is longer than a line is broken.
    fn paragraph(&mut self, text: &str, indent: &str) {
        for line in wrapped(&crate::cli::on_one_line(text), COLUMNS_MAX - indent.len()) {
            self.text += indent;
            self.text += &line;
            self.text.push('\n');
        }
    }

    fn command(&mut self, command: &str) {
        self.text += &shell_lines(command).join("\n");
        self.text.push('\n');
    }

    fn styled(&mut self, style: Style, text: &str) {
        if self.coloured {
            self.text += &format!("{style}{text}{style:#}");
        } else {
            self.text += text;
        }
    }
}

fn style(mark: Mark) -> Style {
    match mark {
        Mark::Green => AnsiColor::Green.on_default(),
        Mark::Red => AnsiColor::Red.on_default().bold(),
        Mark::NotLookedAt => Style::new().dimmed(),
    }
}

/// Where in a command of the shell a character stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quote {
    Plain,
    Single,
    Double,
    /// After a backslash, outside of quotes or within double ones.
    Escaped(bool),
}

impl Quote {
    /// Where the next one stands.
    fn after(self, c: char) -> Self {
        match (self, c) {
            (Self::Plain, '\'') => Self::Single,
            (Self::Plain, '"') => Self::Double,
            (Self::Plain, '\\') => Self::Escaped(false),
            (Self::Double, '\\') => Self::Escaped(true),
            (Self::Double, '"') | (Self::Single, '\'') | (Self::Escaped(false), _) => Self::Plain,
            (Self::Escaped(true), _) => Self::Double,
            (same, _) => same,
        }
    }
}

/// A command on lines that a shell takes as they stand. A backslash before the end of a line joins it with the next one, but
/// not within single quotes, which are closed before it and opened after it.
fn shell_lines(command: &str) -> Vec<String> {
    // The backslash, a quote or a space before it, and the second half of an escape.
    let width = COLUMNS_MAX - 3;
    let length = |text: &str| text.chars().count();
    let (mut lines, mut line) = (vec![], COMMAND_INDENT.to_owned());
    let mut quote = Quote::Plain;
    let words = command.split(|c| {
        let between_words = c == ' ' && quote == Quote::Plain;
        quote = quote.after(c);
        between_words
    });
    for word in words {
        let is_first = line == COMMAND_INDENT;
        if !is_first && length(&line) + 1 + length(word) > width {
            lines.push(format!("{line} \\"));
            COMMAND_INDENT.clone_into(&mut line);
        } else if !is_first {
            line.push(' ');
        }
        let mut quote = Quote::Plain;
        for c in word.chars() {
            // Only at the very beginning of the next line does a word go on. An escape is not torn apart.
            if length(&line) >= width && !matches!(quote, Quote::Escaped(_)) {
                let mark = if quote == Quote::Single { "'" } else { "" };
                lines.push(format!("{line}{mark}\\"));
                mark.clone_into(&mut line);
            }
            quote = quote.after(c);
            line.push(c);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shell makes of the lines what it makes of the command, wherever that has to be broken.
    #[test]
    fn a_command_survives_being_broken() {
        let long = "a folder/".repeat(20);
        for filler in 0..90 {
            let command = format!(
                "printf '%s|' {} '{long}' \"two 'words' and \\\"more\\\" of them, so that the line has to be broken within {long}\" 'it'\\''s' && printf '%s;' '{long}'{}",
                "x".repeat(filler),
                "y".repeat(100)
            );
            let run = |script: &str| std::process::Command::new("sh").args(["-c", script]).output().unwrap();
            let lines = shell_lines(&command);
            assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS_MAX), "{lines:#?}");
            let (whole, broken) = (run(&command), run(&lines.join("\n")));
            assert_eq!(
                String::from_utf8_lossy(&broken.stdout),
                String::from_utf8_lossy(&whole.stdout),
                "{}",
                lines.join("\n")
            );
            assert!(whole.status.success() && broken.status.success());
        }
    }

    /// Words stay whole where they can, and nothing is lost.
    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("a abcdefghij b", 4), ["a", "abcd", "efgh", "ij b"]);
        assert_eq!(wrapped("", 4), [""]);
        assert_eq!(wrapped("on \"ab\".\"cd\"", 6), ["on", "\"ab\".", "\"cd\""]);
    }
}
