//! Every example of every help text and page runs, as a reader would run it: in a shell, in the order in which they
//! stand, against the broker of `millstream dev`.

mod collect;
#[path = "../../../../core/sandbox/tests/common/guest.rs"]
mod guest;
mod stage;

use anyhow::{Result, ensure};

use stage::Stage;

#[test]
fn examples_of_the_help_texts() -> Result<()> {
    let texts = collect::help_texts()?;
    let examples: usize = texts.iter().map(|text| text.examples.len()).sum();
    ensure!(
        examples >= 30,
        "only {examples} examples were found: is the help printed in another way?"
    );
    let mut stage = Stage::new()?;
    let mut wrong = Vec::new();
    for text in &texts {
        if !text.examples.is_empty() {
            stage.furnish(&text.examples)?;
        }
        wrong.extend(all(&mut stage, text));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

#[test]
fn examples_of_the_pages() -> Result<()> {
    let pages = collect::pages()?;
    ensure!(
        pages
            .iter()
            .any(|page| page.name == "README.md" && page.examples.len() > 5),
        "the README's examples were not found"
    );
    let mut wrong = Vec::new();
    for page in pages.iter().filter(|page| !page.examples.is_empty()) {
        wrong.extend(all(&mut Stage::new()?, page));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

fn all(stage: &mut Stage, text: &collect::Text) -> Vec<String> {
    let mut wrong = Vec::new();
    for example in &text.examples {
        if let Err(error) = stage.run(example) {
            wrong.push(format!("{}: {example}\n{error:#}", text.name));
        }
    }
    wrong
}
