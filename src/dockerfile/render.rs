//! From a [`Recipe`] to the text of a Dockerfile: templates of `templates/dockerfile/`, and the helpers that quote.
//!
//! The first line is the program's own, so that no word of a machine can be a parser directive (`# syntax=`). Commands are
//! in exec form: JSON, whose every string is escaped here.

use super::Recipe;
use crate::error::{Error, Escaped, Result};
use handlebars::{
    Context, Handlebars, Helper, HelperResult, Output, RenderContext, RenderErrorReason, no_escape,
};
use serde_json::Value;

/// The parts that templates share.
const PARTIALS: &[(&str, &str)] = &[
    ("head", include_str!("../../templates/dockerfile/head.hbs")),
    (
        "repositories",
        include_str!("../../templates/dockerfile/repositories.hbs"),
    ),
    ("groups", include_str!("../../templates/dockerfile/groups.hbs")),
    ("tail", include_str!("../../templates/dockerfile/tail.hbs")),
];

/// A template for each package tool, by the programs that the distribution's commands call. The last is for all others.
const TEMPLATES: &[(&[&str], &str)] = &[
    (
        &["apt-get", "apt"],
        include_str!("../../templates/dockerfile/apt.hbs"),
    ),
    (
        &["dnf", "yum", "microdnf"],
        include_str!("../../templates/dockerfile/yum.hbs"),
    ),
    (&["tdnf"], include_str!("../../templates/dockerfile/tdnf.hbs")),
    (&["zypper"], include_str!("../../templates/dockerfile/zypper.hbs")),
    (&["urpmi"], include_str!("../../templates/dockerfile/urpmi.hbs")),
    (&["apk"], include_str!("../../templates/dockerfile/apk.hbs")),
    (&["pacman"], include_str!("../../templates/dockerfile/pacman.hbs")),
    (&[], include_str!("../../templates/dockerfile/plain.hbs")),
];

/// The text of the Dockerfile.
///
/// # Errors
/// [`Error::Unsupported`] if the recipe holds what no Dockerfile can say.
pub fn render(recipe: &Recipe) -> Result<String> {
    let failed = |e: String| Error::unsupported(format!("writing the Dockerfile: {e}"));
    let mut engine = Handlebars::new();
    engine.register_escape_fn(no_escape);
    engine.set_strict_mode(true);
    for (name, text) in PARTIALS {
        engine
            .register_partial(name, text)
            .map_err(|e| failed(e.to_string()))?;
    }
    engine.register_helper("comment", Box::new(helper(comment)));
    engine.register_helper("quote", Box::new(helper(quote)));
    engine.register_helper("json", Box::new(helper(json)));
    engine.register_helper("argv", Box::new(helper(argv)));
    engine.register_helper("shell", Box::new(helper(shell)));
    let template = template(&recipe.tool);
    let text = engine
        .render_template(template, recipe)
        .map_err(|e| failed(e.to_string()))?;
    Ok(squeezed(&text))
}

fn template(tool: &str) -> &'static str {
    let mut found = "";
    for (tools, template) in TEMPLATES {
        if tools.is_empty() || tools.contains(&tool) {
            found = template;
            break;
        }
    }
    found
}

/// The package tool that a shell command calls: the first word that a template is for; empty if there is none.
pub fn tool_of(command: &str) -> &'static str {
    let words = command.split([' ', ';', '&', '|', '(', ')', '\n', '\t']);
    let known = |word: &str| {
        let mut all = TEMPLATES.iter().flat_map(|(tools, _)| tools.iter());
        all.find(|t| **t == word).copied()
    };
    words.filter_map(known).next().unwrap_or_default()
}

/// Never two empty lines in a row, and one line feed at the end.
fn squeezed(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut empty = 0;
    for line in text.lines() {
        empty = if line.is_empty() { empty + 1 } else { 0 };
        if empty < 2 {
            out.push_str(line);
            out.push('\n');
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// A helper of one parameter from a function.
fn helper(
    f: fn(&Value) -> std::result::Result<String, &'static str>,
) -> impl Fn(&Helper<'_>, &Handlebars<'_>, &Context, &mut RenderContext<'_, '_>, &mut dyn Output) -> HelperResult
{
    move |h, _, _, _, out| {
        let parameter = h
            .param(0)
            .ok_or(RenderErrorReason::ParamNotFoundForIndex("helper", 0))?;
        let text = f(parameter.value()).map_err(|e| RenderErrorReason::Other(e.to_owned()))?;
        out.write(&text)?;
        Ok(())
    }
}

fn string(value: &Value) -> std::result::Result<&str, &'static str> {
    value.as_str().ok_or("a text was expected")
}

fn strings(value: &Value) -> std::result::Result<Vec<&str>, &'static str> {
    value
        .as_array()
        .ok_or("a list was expected")?
        .iter()
        .map(string)
        .collect()
}

/// A line of comment. Line breaks and what reorders text are escaped, so that it stays one.
fn comment(value: &Value) -> std::result::Result<String, &'static str> {
    let text = Escaped(string(value)?.as_bytes()).to_string();
    Ok(format!("# {text}").trim_end().to_owned())
}

/// A value in double quotes, as the Dockerfile reference says for environment replacement: `\`, `"` and `$` are escaped.
fn quote(value: &Value) -> std::result::Result<String, &'static str> {
    let text = string(value)?;
    if text.contains(char::is_control) {
        return Err("a value with a control character");
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        if matches!(c, '\\' | '"' | '$') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    Ok(out)
}

/// A JSON string. Beyond what JSON asks for, what a person cannot see or would see elsewhere is escaped.
fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A list of JSON strings on one line.
fn json(value: &Value) -> std::result::Result<String, &'static str> {
    let all: Vec<String> = strings(value)?.into_iter().map(json_string).collect();
    Ok(format!("[{}]", all.join(", ")))
}

/// A command with its arguments; one a line where they are many.
fn argv(value: &Value) -> std::result::Result<String, &'static str> {
    let all: Vec<String> = strings(value)?.into_iter().map(json_string).collect();
    let short = all.iter().map(|a| a.len() + 2).sum::<usize>() <= 110;
    let options = all.iter().take_while(|a| *a != "\"--\"").count() + 1;
    match all.split_at_checked(options) {
        Some((command, arguments)) if !short && !arguments.is_empty() => Ok(format!(
            "[{}, \\\n    {}]",
            command.join(", "),
            arguments.join(", \\\n    ")
        )),
        _ => Ok(format!("[{}]", all.join(", "))),
    }
}

/// A command for `/bin/sh -c`, given as lines. A line that begins with `#` is a comment, which the Dockerfile's parser takes
/// out before it puts the others together.
fn shell(value: &Value) -> std::result::Result<String, &'static str> {
    let lines = strings(value)?;
    let mut out = String::from("[\"/bin/sh\", \"-c\", \"");
    if let [line] = lines.as_slice() {
        let quoted = json_string(line);
        return Ok(format!("[\"/bin/sh\", \"-c\", {quoted}]"));
    }
    let last = lines.iter().rposition(|l| !l.trim_start().starts_with('#'));
    for (i, line) in lines.iter().enumerate() {
        let comment = line.trim_start().starts_with('#');
        if comment {
            let text = Escaped(line.as_bytes()).to_string();
            // Ends in no backslash: it is a whole line of its own.
            out.push_str(if i == 0 { "\\\n    " } else { "\n    " });
            out.push_str(&text);
            continue;
        }
        // The line before goes on here: what stands behind its words is the mark of that.
        out.push_str(if i == 0 { "\\\n    " } else { "\n    " });
        let quoted = json_string(line);
        out.push_str(
            quoted
                .trim_start_matches('"')
                .strip_suffix('"')
                .unwrap_or(&quoted),
        );
        if last.is_some_and(|last| i < last) {
            out.push_str(" \\");
        }
    }
    out.push_str("\"]");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as value;

    #[test]
    fn comments_stay_one_line_of_comment() {
        assert_eq!(
            comment(&value!("a\nRUN evil\u{202e}")).unwrap(),
            "# a\\nRUN evil\\u{202e}"
        );
        assert_eq!(comment(&value!("")).unwrap(), "#");
    }

    #[test]
    fn values_are_quoted() {
        assert_eq!(
            quote(&value!("a \"b\" $(c) ${d} \\ 'e'")).unwrap(),
            r#""a \"b\" \$(c) \${d} \\ 'e'""#
        );
        assert!(quote(&value!("a\nb")).is_err());
    }

    #[test]
    fn commands_are_json() {
        let words = value!(["rm", "-rf", "--", "/a\n\"b", "/\u{7f}\u{202e}\\"]);
        let text = argv(&words).unwrap();
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back, words);
        assert!(text.is_ascii());
        let many: Vec<String> = (0..40).map(|i| format!("/file/{i}")).collect();
        let words: Vec<String> = ["rm".to_owned(), "--".to_owned()]
            .into_iter()
            .chain(many)
            .collect();
        let text = argv(&value!(words)).unwrap();
        assert!(text.lines().count() == 41 && text.lines().rev().skip(1).all(|l| l.ends_with('\\')));
        let joined: String = text.lines().map(|l| l.trim_end_matches('\\')).collect();
        assert_eq!(serde_json::from_str::<Value>(&joined).unwrap(), value!(words));
    }

    /// What the parser of Dockerfiles makes of an instruction: comments go, continued lines are put together.
    fn parsed(text: &str) -> String {
        let lines = text.lines().filter(|l| !l.trim_start().starts_with('#'));
        lines.map(|l| l.strip_suffix('\\').unwrap_or(l)).collect()
    }

    #[test]
    fn a_script_survives_the_parser() {
        let lines = value!(["a update && \\\"x", "# said: b\\", "    b='1' &&", "c"]);
        let text = shell(&lines).unwrap();
        let back: Vec<String> = serde_json::from_str(&parsed(&text)).unwrap();
        assert_eq!(back[..2], ["/bin/sh", "-c"]);
        assert_eq!(
            back[2].split_ascii_whitespace().collect::<Vec<_>>(),
            ["a", "update", "&&", "\\\"x", "b='1'", "&&", "c"]
        );
        assert_eq!(shell(&value!(["x"])).unwrap(), r#"["/bin/sh", "-c", "x"]"#);
    }

    #[test]
    fn tools_by_their_commands() {
        assert_eq!(
            tool_of("DEBIAN_FRONTEND=noninteractive apt-get install -y x"),
            "apt-get"
        );
        assert_eq!(tool_of("a && zypper in"), "zypper");
        assert_eq!(tool_of("emerge x"), "");
        for (tools, text) in TEMPLATES.iter().chain(&[(&[][..], "")]) {
            assert!(tools.is_empty() || !text.is_empty());
        }
    }
}
