//! The report as people read it: a line per check, at most 80 columns wide, and below the red ones what helps.

use anstyle::{AnsiColor, Style};

use super::{Finding, Mark, Report};

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

    /// A command that the shell takes as it stands, also where it is broken.
    fn command(&mut self, command: &str) {
        let width = COLUMNS_MAX - COMMAND_INDENT.len();
        // A word that is longer than a line can only go on at the beginning of the next one.
        if command.split(' ').any(|word| word.chars().count() > width - 2) {
            let all: Vec<char> = COMMAND_INDENT.chars().chain(command.chars()).collect();
            let lines: Vec<String> = all.chunks(COLUMNS_MAX - 1).map(|line| line.iter().collect()).collect();
            self.text += &lines.join("\\\n");
        } else {
            let lines = wrapped(command, width - 2);
            let lines: Vec<String> = lines.iter().map(|line| format!("{COMMAND_INDENT}{line}")).collect();
            self.text += &lines.join(" \\\n");
        }
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

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    let mut line = String::new();
    for word in text.split(' ') {
        let taken = line.chars().count();
        let length = word.chars().count();
        if taken > 0 && taken + 1 + length > width {
            lines.push(std::mem::take(&mut line));
        } else if taken > 0 {
            line.push(' ');
        }
        for part in word.chars() {
            if line.chars().count() == width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(part);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words stay whole where they can, and nothing is lost.
    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("a abcdefghij b", 4), ["a", "abcd", "efgh", "ij b"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
