//! What is different where a person sits: questions before what cannot be undone, and a line of progress that
//! keeps out of what is typed and printed.
//!
//! The terminal is that of `script` (util-linux): what is written to its standard input is typed, and its
//! standard output is the screen.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use millstream_e2e::{Broker, Options, binary, eventually};

const CTRL_C: &str = "\x03";
/// With this a line of progress is written over.
const CLEAR_LINE: &str = "\x1b[K";

/// A command of a shell on a terminal of its own. Ended when dropped.
struct Terminal {
    child: Child,
    keyboard: Option<ChildStdin>,
    screen: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    fn run(broker: &Broker, command: &str) -> Result<Self> {
        // Whoever runs the tests in the background has Ctrl-C ignored, which a command would inherit.
        let mut child = Command::new("env")
            .args(["--default-signal=INT,QUIT", "script"])
            .args(["--quiet", "--return", "--flush", "--command"])
            .arg(command.replace("millstream ", &format!("{} ", binary().display())))
            .arg("/dev/null")
            .env("SHELL", "/bin/sh")
            .env("MILLSTREAM_CONTEXT", broker.context())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("`script` of util-linux")?;
        let keyboard = child.stdin.take();
        let mut from = child.stdout.take().context("piped")?;
        let screen = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&screen);
        let reader = std::thread::spawn(move || {
            let mut block = [0; 4_096];
            while let Ok(count @ 1..) = from.read(&mut block) {
                let text = String::from_utf8_lossy(&block[..count]).into_owned();
                into.lock().expect("nobody panics with it").push_str(&text);
            }
        });
        Ok(Self {
            child,
            keyboard,
            screen,
            reader: Some(reader),
        })
    }

    fn screen(&self) -> String {
        self.screen.lock().expect("nobody panics with it").clone()
    }

    fn shows(&self, text: &str) -> Result<()> {
        eventually(&format!("{text:?} on the screen"), || {
            Ok(self.screen().contains(text))
        })
        .with_context(|| self.screen())
    }

    fn type_in(&mut self, keys: &str) -> Result<()> {
        let keyboard = self.keyboard.as_mut().context("not closed")?;
        keyboard.write_all(keys.as_bytes())?;
        Ok(keyboard.flush()?)
    }

    /// The end of what is typed, as by Ctrl-D.
    fn end_of_input(&mut self) {
        self.keyboard = None;
    }

    /// How it ended, and everything that was on the screen.
    fn ended(mut self) -> Result<(ExitStatus, String)> {
        let mut status = None;
        eventually("the command ends", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
        .with_context(|| self.screen())?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok((status.context("it ended")?, self.screen()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Looks whether something is there.
type Look = fn(&Broker) -> Result<bool>;

/// Commands that cannot be undone, and whether what each would take is still there.
const DESTRUCTIVE: [(&str, Look); 4] = [
    ("topic delete orders", has_records),
    ("topic purge orders", has_records),
    ("topic trim orders --before end", has_records),
    ("group delete billing --force", has_group),
];

fn has_records(broker: &Broker) -> Result<bool> {
    let listed = broker.ok("topic list")?;
    Ok(listed.contains("orders") && !broker.ok("sub orders --from start -e")?.is_empty())
}

fn has_group(broker: &Broker) -> Result<bool> {
    Ok(broker.ok("group list")?.contains("billing"))
}

fn furnish(broker: &Broker) -> Result<()> {
    broker.ok("topic create orders --if-not-exists")?;
    broker.ok("pub orders one")?;
    broker.ok("sub orders --group billing -e")?;
    Ok(())
}

#[test]
fn what_cannot_be_undone_is_asked_on_a_terminal() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    furnish(&broker)?;
    for (line, is_there) in DESTRUCTIVE {
        for (keys, code) in [("n\n", 1), ("\n", 1), ("yep\n", 1), ("", 1), (CTRL_C, 130)] {
            let mut terminal = Terminal::run(&broker, &format!("exec millstream {line}"))?;
            terminal.shows("cannot be undone. [y/N] ")?;
            terminal.type_in(keys)?;
            if keys.is_empty() {
                terminal.end_of_input();
            }
            let (status, screen) = terminal.ended()?;
            ensure!(
                status.code() == Some(code),
                "{line}, {keys:?}: {status}\n{screen}"
            );
            ensure!(
                code == 130 || screen.contains("nothing was done"),
                "{line}, {keys:?}: {screen}"
            );
            ensure!(is_there(&broker)?, "{line}, {keys:?}: it is gone\n{screen}");
        }
        let mut terminal = Terminal::run(&broker, &format!("exec millstream {line}"))?;
        terminal.shows("[y/N] ")?;
        terminal.type_in("y\n")?;
        let (status, screen) = terminal.ended()?;
        ensure!(
            status.success() && !is_there(&broker)?,
            "{line}: {status}\n{screen}"
        );
        furnish(&broker)?;
    }
    Ok(())
}

#[test]
fn nobody_is_asked_with_yes_and_without_a_terminal() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    for (line, is_there) in DESTRUCTIVE {
        furnish(&broker)?;
        let terminal = Terminal::run(&broker, &format!("exec millstream {line} --yes"))?;
        let (status, screen) = terminal.ended()?;
        ensure!(
            status.success() && !screen.contains("[y/N]"),
            "{line} --yes: {status}\n{screen}"
        );
        ensure!(!is_there(&broker)?, "{line} --yes: it is there");
        furnish(&broker)?;
        // A script's standard input is none, or has nothing to say; so is one whose messages go to a file.
        let terminal = Terminal::run(&broker, &format!("millstream {line} < /dev/null"))?;
        let (status, screen) = terminal.ended()?;
        ensure!(
            status.success() && !screen.contains("[y/N]"),
            "{line} < /dev/null: {status}\n{screen}"
        );
        ensure!(!is_there(&broker)?, "{line} < /dev/null: it is there");
    }
    Ok(())
}

/// The line of progress is where input comes from elsewhere, and not where a person types, or sees what is
/// printed for each record.
#[test]
fn progress_keeps_out_of_what_is_typed_and_printed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create orders")?;
    let mut typed = Terminal::run(&broker, "exec millstream pub orders")?;
    typed.shows("each line is a record; Ctrl-D ends")?;
    typed.type_in("hello\n")?;
    // Both wait for more input, from a pipe that stays open.
    let printed = Terminal::run(
        &broker,
        "(echo one; exec cat) | millstream pub orders --offsets",
    )?;
    printed.shows("line 1: partition 0 offset ")?;
    let mut piped = Terminal::run(&broker, "(echo one; exec cat) | millstream pub orders")?;
    // Begun last, it has shown its progress several times: the others had the time to.
    eventually("progress on the screen", || {
        Ok(piped.screen().matches(CLEAR_LINE).count() > 3)
    })
    .with_context(|| piped.screen())?;
    ensure!(
        piped.screen().contains("1 acknowledged"),
        "{}",
        piped.screen()
    );
    for mut quiet in [typed, printed] {
        quiet.end_of_input();
        let (status, screen) = quiet.ended()?;
        ensure!(status.success(), "{status}\n{screen}");
        ensure!(!screen.contains(CLEAR_LINE), "{screen:?}");
        ensure!(screen.contains("1 record acknowledged"), "{screen}");
    }
    piped.end_of_input();
    let (status, screen) = piped.ended()?;
    ensure!(status.success(), "{status}\n{screen}");
    // The last words stand on a line that was cleared.
    ensure!(
        screen.contains(&format!("{CLEAR_LINE}1 record acknowledged")),
        "{screen:?}"
    );
    Ok(())
}
