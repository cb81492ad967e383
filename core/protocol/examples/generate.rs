//! Writes `src/generated.rs` from the schema, without protoc: `cargo run -p millstream-protocol
//! --example generate`. With `--check` it writes nothing and fails when the file is not fresh.

mod generation;

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let root = Path::new(&root);
    let fresh = generation::generate(root)?;
    let committed = root.join("src/generated.rs");
    if std::env::args().any(|argument| argument == "--check") {
        if std::fs::read_to_string(&committed)? != fresh {
            return Err(
                "src/generated.rs is not what the schema gives: run the `generate` example".into(),
            );
        }
    } else {
        std::fs::write(&committed, fresh)?;
    }
    Ok(())
}
