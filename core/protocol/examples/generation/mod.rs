//! The generated code of the schema, without protoc.

use std::path::{Path, PathBuf};

/// What `src/generated.rs` should be. `root` is this package's directory.
pub(crate) fn generate(root: &Path) -> Result<String, Box<dyn std::error::Error>> {
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
