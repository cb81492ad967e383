//! `cargo xtask plugins`: builds the bundled components.
pub(crate) fn run(_check: bool) -> anyhow::Result<()> {
    Ok(())
}
