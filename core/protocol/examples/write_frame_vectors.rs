//! Writes `clients/vectors/frames`: one frame of every kind as bytes, and beside it what it says as
//! JSON, read back by the schema alone. `cargo run -p millstream-protocol --example write_frame_vectors`.

mod samples;

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let directory = Path::new(&package).join("../../clients/vectors/frames");
    std::fs::create_dir_all(&directory)?;
    let schema = samples::describe::schema();
    for sample in samples::all() {
        let description = samples::describe::describe(&schema, &sample);
        std::fs::write(
            directory.join(format!("{}.bin", sample.name)),
            &sample.frame,
        )?;
        let text = serde_json::to_string_pretty(&description)? + "\n";
        std::fs::write(directory.join(format!("{}.json", sample.name)), text)?;
    }
    Ok(())
}
