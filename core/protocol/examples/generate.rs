//! Writes `src/generated.rs` from the schema, without protoc: `cargo run -p millstream-protocol
//! --example generate`. With `--check` it writes nothing and fails when the file is not fresh.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = generate(root)?;
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

fn generate(root: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["millstream.proto"], [root.join("proto")])?;
    let out: PathBuf =
        std::env::temp_dir().join(format!("millstream-generate-{}", std::process::id()));
    std::fs::create_dir_all(&out)?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]).out_dir(&out);
    config.compile_fds(descriptors)?;
    let code = std::fs::read_to_string(out.join("millstream.v1.rs"))?;
    std::fs::remove_dir_all(&out)?;
    Ok(format!(
        "// From proto/millstream.proto by examples/generate.rs. Not to be edited.\n{code}"
    ))
}
