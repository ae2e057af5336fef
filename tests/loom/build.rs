//! Says that atomics are loom's here. A cfg of our own: `loom` would change what dependencies are made of.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(tidegate_loom)");
    println!("cargo:rustc-cfg=tidegate_loom");
    println!("cargo:rerun-if-changed=build.rs");
}
