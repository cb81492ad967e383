//! A compiled component whose imports and exports have been checked: which plug points it offers.
//! Deliberately absent: instances.

use std::fmt;

use sha2::{Digest as _, Sha256};
use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{ComponentExportIndex, InstancePre};

use crate::engine::Engine;
use crate::error::CompileError;
use crate::filter::{FILTER_VIEW, KeepParams, KeepResult, StartResult};
use crate::host::{self, Host};

/// The package of all plug points, without version.
const PACKAGE: &str = "millstream:plugin/";
/// Plug points that this broker offers, for people.
const OFFERED: &str = FILTER_VIEW;
/// Interfaces of WASI 0.2 that language runtimes import whether they need them or not. A component may
/// import them; calling one is a trap that names it.
const INERT: [&str; 6] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

/// SHA-256 of a component as uploaded. A deployment's version is this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// What the broker can ask of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlugPoint {
    /// Keep or drop each record, in the view world.
    FilterView,
}

/// Where compiled code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was compiled now.
    Compiler,
    /// It was compiled earlier and kept.
    Cache,
}

/// A component that has passed all checks and can be instantiated.
pub struct Component {
    pub(crate) engine: Engine,
    pub(crate) pre: InstancePre<Host>,
    pub(crate) filter: Option<FilterExports>,
    digest: Digest,
    origin: Origin,
}

/// Where the functions of `filter-view` are.
pub(crate) struct FilterExports {
    pub(crate) start: ComponentExportIndex,
    pub(crate) keep: ComponentExportIndex,
}

impl Component {
    /// The component's identity.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether it had to be compiled.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// What it offers, at least one.
    #[must_use]
    pub fn plug_points(&self) -> Vec<PlugPoint> {
        let filter = self.filter.as_ref().map(|_| PlugPoint::FilterView);
        filter.into_iter().collect()
    }

    pub(crate) fn check(
        engine: &Engine,
        compiled: &wasmtime::component::Component,
        digest: Digest,
        origin: Origin,
    ) -> Result<Self, CompileError> {
        let ty = compiled.component_type();
        let filter = filter_exports(engine, compiled, &ty)?;
        if filter.is_none() {
            return Err(no_plug_point(engine, &ty));
        }
        let needs_stubs = check_imports(engine, &ty)?;
        let wrong_import = |error: wasmtime::Error| CompileError::WrongImport(format!("{error:#}"));
        let mut linker = engine.linker().clone();
        if needs_stubs {
            linker
                .define_unknown_imports_as_traps(compiled)
                .map_err(wrong_import)?;
        }
        let pre = linker.instantiate_pre(compiled).map_err(wrong_import)?;
        Ok(Self {
            engine: engine.clone(),
            pre,
            filter,
            digest,
            origin,
        })
    }
}

/// Finds and type-checks the functions of `filter-view`, if that is exported.
fn filter_exports(
    engine: &Engine,
    compiled: &wasmtime::component::Component,
    ty: &types::Component,
) -> Result<Option<FilterExports>, CompileError> {
    let Some(export) = ty.get_export(engine.wasm(), FILTER_VIEW) else {
        return Ok(None);
    };
    let wrong = |reason: String| CompileError::WrongShape {
        export: FILTER_VIEW,
        reason,
    };
    let ComponentItem::ComponentInstance(interface) = export.ty else {
        return Err(wrong("it is not an interface".into()));
    };
    let function = |name: &str| match interface.get_export(engine.wasm(), name).map(|e| e.ty) {
        Some(ComponentItem::ComponentFunc(function)) => Ok(function),
        _ => Err(wrong(format!("the function `{name}` is missing"))),
    };
    let instance_type = ty.instance_type();
    function("start")?
        .typecheck::<(), (StartResult,)>(&instance_type)
        .map_err(|error| wrong(format!("`start`: {error:#}")))?;
    function("keep")?
        .typecheck::<KeepParams<'static>, (KeepResult,)>(&instance_type)
        .map_err(|error| wrong(format!("`keep`: {error:#}")))?;

    let interface = compiled.get_export_index(None, FILTER_VIEW);
    let index = |name| {
        compiled
            .get_export_index(interface.as_ref(), name)
            .ok_or_else(|| wrong(format!("the function `{name}` is missing")))
    };
    Ok(Some(FilterExports {
        start: index("start")?,
        keep: index("keep")?,
    }))
}

/// Refuses imports that the sandbox does not offer. Whether some need stubs that trap.
fn check_imports(engine: &Engine, ty: &types::Component) -> Result<bool, CompileError> {
    let mut needs_stubs = false;
    for (name, import) in ty.imports(engine.wasm()) {
        if host::INTERFACES.contains(&name) || only_types(engine, &import.ty) {
            continue;
        }
        if !INERT.iter().any(|inert| name.starts_with(inert)) || !name.contains("@0.2.") {
            return Err(CompileError::UnknownImport {
                import: name.into(),
                offered: host::OFFERED,
            });
        }
        needs_stubs = true;
    }
    Ok(needs_stubs)
}

/// Whether an import brings names for types and nothing to call.
fn only_types(engine: &Engine, item: &ComponentItem) -> bool {
    match item {
        ComponentItem::ComponentInstance(interface) => interface
            .exports(engine.wasm())
            .all(|(_, export)| matches!(export.ty, ComponentItem::Type(_))),
        ComponentItem::Type(_) => true,
        _ => false,
    }
}

fn no_plug_point(engine: &Engine, ty: &types::Component) -> CompileError {
    let exports: Vec<String> = ty
        .exports(engine.wasm())
        .map(|(name, _)| name.to_owned())
        .collect();
    match exports.iter().find(|name| name.starts_with(PACKAGE)) {
        Some(found) => CompileError::OtherVersion {
            found: found.clone(),
            offered: OFFERED,
        },
        None => CompileError::NoPlugPoint {
            offered: OFFERED,
            exports,
        },
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component")
            .field("digest", &self.digest)
            .field("plug_points", &self.plug_points())
            .finish_non_exhaustive()
    }
}

impl Digest {
    /// The digest of a component's bytes.
    #[must_use]
    pub fn of(wasm: &[u8]) -> Self {
        Self(Sha256::digest(wasm).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
