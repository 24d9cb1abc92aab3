//! What people see on stderr: progress bars, warnings, and a clean end on Ctrl-C.

use crate::error::Escaped;
use crate::progress::{Progress, Silent, Stage};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;

/// Progress bars with bytes and time left on a terminal; warnings anywhere; nothing with `--quiet`.
#[derive(Clone)]
pub(super) struct Ui {
    bars: MultiProgress,
    quiet: bool,
    verbose: bool,
}

impl Ui {
    pub(super) fn new(quiet: bool, verbose: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            quiet,
            verbose,
        }
    }

    /// A remark for those who asked for more.
    pub(super) fn note(&self, message: &str) {
        if self.verbose && !self.quiet {
            self.line("note", message);
        }
    }

    /// The progress bars, to suspend them while the user is asked something.
    pub(super) fn bars(&self) -> MultiProgress {
        self.bars.clone()
    }

    pub(super) fn finish(&self) {
        let _ = self.bars.clear();
    }

    fn line(&self, kind: &str, message: &str) {
        self.bars
            .suspend(|| eprintln!("{kind}: {}", Escaped(message.as_bytes())));
    }
}

impl Progress for Ui {
    fn stage(&self, what: &str, total: Option<u64>) -> Arc<dyn Stage> {
        if self.bars.is_hidden() {
            return Arc::new(Silent);
        }
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{msg:32!} {wide_bar} {bytes:>10} / {total_bytes:<10} {eta:>4} left",
            ),
            None => (
                ProgressBar::new_spinner(),
                "{msg:32!} {spinner} {bytes:>10} {bytes_per_sec}",
            ),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let bar = self.bars.add(bar);
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        Arc::new(Bar(bar))
    }

    fn warn(&self, message: &str) {
        if !self.quiet {
            self.line("warning", message);
        }
    }

    fn output(&self, line: &[u8]) {
        if !self.quiet {
            self.bars.suspend(|| eprintln!("  | {}", Escaped(line)));
        }
    }
}

struct Bar(ProgressBar);

impl Stage for Bar {
    fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// On SIGINT, SIGTERM and SIGHUP removes what is half written and ends with 128 and the signal's number.
pub(super) fn clean_up_on_signals() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            crate::scratch::remove_all();
            std::process::exit(128 + signal);
        }
    });
}
