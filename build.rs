//! What the module must know about the nginx it is built for.
//!
//! `nginx-sys` reads nginx's headers and hands on to its direct dependents, as `DEP_NGINX_*`, which features that
//! nginx was configured with, its include paths and macros. From them this script makes the `cfg` values
//! `ngx_feature` and `ngx_stat_stub`, and binds `ngx_http_request_t` once more with a bindgen that lays out its
//! bitfields right (see `src/ngx/compat.rs`). `layout-check/build.rs` runs the same functions, to check what they make.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/ngx/compat.h");
    println!("cargo::rerun-if-changed=src/ngx/angie.h");
    features();
    request_bitfields();
    built_for();
}

/// Reads a `DEP_NGINX_*` value, and runs again when it changes.
fn dep(name: &str) -> Option<String> {
    let name = format!("DEP_NGINX_{name}");
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok()
}

/// Names the nginx for `src/ngx/built_for.rs`: as its headers do, and in brackets as whoever builds it does in
/// `BUILT_FOR`, such as the package and its version.
fn built_for() {
    let nginx = dep("VERSION").expect("nginx-sys hands on nginx's version");
    let mut name = angie().map_or(nginx, |version| format!("Angie/{version}"));
    println!("cargo::rerun-if-env-changed=BUILT_FOR");
    if let Some(package) = env::var("BUILT_FOR").ok().filter(|p| !p.is_empty()) {
        assert!(!package.contains('\n'), "BUILT_FOR is one line");
        name += &format!(" ({package})");
    }
    println!("cargo::rustc-env=MATRIX_USER_HASH_BUILT_FOR={name}");
}

/// The version of Angie whose headers these are; `None` for every other server.
fn angie() -> Option<String> {
    let text = header("angie.h")?;
    let (_, rest) = text.split_once("#define ANGIE_VERSION")?;
    rest.split('"').nth(1).map(str::to_owned)
}

/// What one of nginx's headers says; `None` if it has none of that name.
fn header(name: &str) -> Option<String> {
    let include = dep("INCLUDE")?;
    let found = env::split_paths(&include)
        .map(|path| path.join(name))
        .find(|header| header.is_file())?;
    Some(std::fs::read_to_string(found).expect("a header can be read"))
}

/// What no feature of nginx's tells, by the names of `cfg`, and whether it is so.
pub(crate) fn traits() -> [(&'static str, bool); 3] {
    let says = |name, words: &str| header(name).is_some_and(|text| text.contains(words));
    [
        ("angie", angie().is_some()),
        // Angie since 1.12.0: ngx_log_error_core() takes the name of a source file.
        (
            "log_names_file",
            says("ngx_log.h", "ngx_log_t *log, const char *filename"),
        ),
        // Angie since 1.9.0: a group's peer has a function that makes its connection.
        (
            "peer_connects",
            says("ngx_event_connect.h", "ngx_event_connect_peer_pt"),
        ),
    ]
}

/// `cfg` for each of [`traits`], and `cfg(ngx_feature = "…")` for what nginx's `configure` switched on.
pub(crate) fn features() {
    for (name, is_so) in traits() {
        println!("cargo::rustc-check-cfg=cfg({name})");
        if is_so {
            println!("cargo::rustc-cfg={name}");
        }
    }
    let known = dep("FEATURES_CHECK").unwrap_or_else(|| "any()".to_owned());
    println!("cargo::rustc-check-cfg=cfg(ngx_feature, values({known}))");
    for feature in dep("FEATURES")
        .unwrap_or_default()
        .split(',')
        .filter(|f| !f.is_empty())
    {
        println!("cargo::rustc-cfg=ngx_feature=\"{}\"", feature.trim());
    }
}

/// Binds `ngx_http_request_t` and `ngx_variable_value_t` with our bindgen, for the bitfields that we touch.
pub(crate) fn request_bitfields() {
    let include = dep("INCLUDE").expect("nginx-sys hands on nginx's include paths");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let bindings = bindgen::Builder::default()
        .header("src/ngx/compat.h")
        .clang_args(env::split_paths(&include).map(|path| format!("-I{}", path.display())))
        .clang_args(
            dep("CFLAGS")
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned),
        )
        .allowlist_type("ngx_http_request_s")
        .allowlist_type("ngx_variable_value_t")
        .allowlist_var("ngx_stat_(requests|reading)")
        .layout_tests(false)
        .derive_debug(false)
        .use_core()
        .generate()
        .expect("bindings of ngx_http_request_t");
    // Declared only with --with-http_stub_status_module, which nginx-sys 0.5 does not tell.
    println!("cargo::rustc-check-cfg=cfg(ngx_stat_stub)");
    if bindings.to_string().contains("ngx_stat_requests") {
        println!("cargo::rustc-cfg=ngx_stat_stub");
    }
    bindings
        .write_to_file(out.join("request.rs"))
        .expect("OUT_DIR can be written to");
}
