//! Writes both halves of the comparison from the same two lists, and compiles the C one.
//!
//! In: `used.txt`, `request-bits.txt`, nginx's include paths (`DEP_NGINX_*`, from nginx-sys), and the module's own
//! build script, which binds `ngx_http_request_t`. Out, in `OUT_DIR`: `liblayout.a` and `layout.rs`.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The module's build script: what is compared is what the module is built with.
#[path = "../build.rs"]
#[allow(
    dead_code,
    reason = "its main() is cargo's to call, in the module's package"
)]
mod module;

/// One line of used.txt.
struct Type<'a> {
    name: &'a str,
    fields: Vec<&'a str>,
    bits: Vec<&'a str>,
}

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let used = read("used.txt");
    let request = read("request-bits.txt");
    let types = types(&used);
    let request_bits: Vec<&str> = lines(&request).flat_map(str::split_whitespace).collect();

    fs::write(out.join("layout.c"), c_half(&types, &request_bits)).expect("OUT_DIR is writable");
    let rust = rust_half(&types, &request_bits) + &all_bitfields() + &left_out(&used);
    fs::write(out.join("layout.rs"), rust).expect("OUT_DIR is writable");
    compile(&out.join("layout.c"));

    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../build.rs");
    println!("cargo::rerun-if-changed=../src/ngx/compat.h");
    println!("cargo::rustc-env=NGINX_VERSION={}", dep("VERSION"));
    println!(
        "cargo::rustc-env=NGINX_VERSION_NUMBER={}",
        dep("VERSION_NUMBER")
    );
    // Bindings name functions of nginx's, which is not linked; none is called.
    println!("cargo::rustc-link-arg-bins=-Wl,--unresolved-symbols=ignore-all");
    // The module's script names its files from its own package's folder.
    env::set_current_dir("..").expect("the workspace");
    module::features();
    module::request_bitfields();
}

fn read(name: &str) -> String {
    println!("cargo::rerun-if-changed={name}");
    fs::read_to_string(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Every type once, without what this nginx was not configured with.
fn types(used: &str) -> Vec<Type<'_>> {
    let (features, traits) = (dep("FEATURES"), module::traits());
    let mut types: Vec<Type> = Vec::new();
    for line in lines(used) {
        let (name, rest) = line.split_once(": ").expect("TYPE: FIELD...");
        let (name, feature) = name.split_once('@').unwrap_or((name, ""));
        let is_known = |feature: &str| {
            traits.contains(&(feature, true))
                || features.split(',').any(|has| has.trim() == feature)
        };
        if !feature.is_empty() && !is_known(feature) {
            continue;
        }
        let (fields, bits) = rest.split_once('|').unwrap_or((rest, ""));
        let (fields, bits) = (fields.split_whitespace(), bits.split_whitespace());
        match types.iter_mut().find(|known| known.name == name) {
            Some(known) => {
                known.fields.extend(fields);
                known.bits.extend(bits);
            }
            None => types.push(Type {
                name,
                fields: fields.collect(),
                bits: bits.collect(),
            }),
        }
    }
    types
}

/// Functions that tell a size, an offset, or fill one bitfield of a structure with ones.
fn c_half(types: &[Type], request_bits: &[&str]) -> String {
    let mut c =
        String::from("#include <ngx_config.h>\n#include <ngx_core.h>\n#include <ngx_http.h>\n");
    for Type { name, fields, bits } in types {
        let _ = writeln!(c, "size_t c_size_{name}(void) {{ return sizeof({name}); }}");
        for field in fields {
            let _ = writeln!(
                c,
                "size_t c_offset_{name}_{field}(void) {{ return offsetof({name}, {field}); }}"
            );
        }
        bits.iter().for_each(|bit| fill(&mut c, name, bit));
    }
    for bit in request_bits {
        fill(&mut c, "ngx_http_request_t", bit);
    }
    c
}

fn fill(c: &mut String, name: &str, bit: &str) {
    let _ = writeln!(
        c,
        "void c_fill_{name}_{bit}({name} *p) {{ unsigned ones = ~0u; p->{bit} = ones; }}"
    );
}

/// The same as tables of Rust, each row with its counterpart in C.
fn rust_half(types: &[Type], request_bits: &[&str]) -> String {
    let (mut externs, mut places, mut bit_rows) = (String::new(), String::new(), String::new());
    for Type { name, fields, bits } in types {
        let rust = binding(name);
        let _ = writeln!(externs, "fn c_size_{name}() -> usize;");
        let _ = writeln!(
            places,
            "Place {{ what: \"sizeof({name})\", rust: size_of::<nginx_sys::{rust}>(), c: c_size_{name} }},"
        );
        for field in fields {
            let member = if *field == "type" { "type_" } else { field };
            let _ = writeln!(externs, "fn c_offset_{name}_{field}() -> usize;");
            let _ = writeln!(
                places,
                "Place {{ what: \"offsetof({name}, {field})\", rust: offset_of!(nginx_sys::{rust}, {member}), c: c_offset_{name}_{field} }},"
            );
        }
        for bit in bits {
            row(&mut externs, &mut bit_rows, "nginx_sys", name, bit);
        }
    }
    let (mut ours, mut theirs, mut unused) = (String::new(), String::new(), String::new());
    for bit in request_bits {
        row(&mut externs, &mut ours, "bound", "ngx_http_request_t", bit);
        row(
            &mut unused,
            &mut theirs,
            "nginx_sys",
            "ngx_http_request_t",
            bit,
        );
    }
    format!(
        "unsafe extern \"C\" {{\n{externs}}}\n\
         pub(crate) static PLACES: &[Place] = &[\n{places}];\n\
         pub(crate) static BITS: &[Bit] = &[\n{bit_rows}];\n\
         pub(crate) static REQUEST_BITS_OURS: &[Bit] = &[\n{ours}];\n\
         pub(crate) static REQUEST_BITS_NGINX_SYS: &[Bit] = &[\n{theirs}];\n"
    )
}

fn row(externs: &mut String, rows: &mut String, krate: &str, name: &str, bit: &str) {
    let rust = binding(name);
    let _ = writeln!(externs, "fn c_fill_{name}_{bit}(p: *mut c_void);");
    let _ = writeln!(
        rows,
        "Bit {{ what: \"{name}.{bit}\", size: size_of::<{krate}::{rust}>(), c: c_fill_{name}_{bit}, \
         fill: |p| unsafe {{ (*p.cast::<{krate}::{rust}>()).set_{bit}(c_uint::MAX as _) }}, \
         get: |p| unsafe {{ (*p.cast::<{krate}::{rust}>()).{bit}() as u64 }} }},"
    );
}

/// The names of all bitfields in nginx's headers.
fn all_bitfields() -> String {
    let mut names = BTreeSet::new();
    for folder in env::split_paths(&dep("INCLUDE")) {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|end| end != "h") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            names.extend(text.lines().filter_map(bitfield).map(str::to_owned));
        }
    }
    let names: Vec<String> = names.into_iter().collect();
    format!("pub(crate) static ALL_BITFIELDS: &[&str] = &{names:?};\n")
}

/// The bitfields of used.txt that this nginx has no structure for, as it was configured: code that touches them is left out.
fn left_out(used: &str) -> String {
    let features = dep("FEATURES");
    let names: Vec<&str> = lines(used)
        .filter_map(|line| line.split_once(": "))
        .filter_map(|(name, rest)| Some((name.split_once('@')?.1, rest.split_once('|')?.1)))
        .filter(|(feature, _)| !features.split(',').any(|has| has.trim() == *feature))
        .flat_map(|(_, bits)| bits.split_whitespace())
        .collect();
    format!("pub(crate) static LEFT_OUT: &[&str] = &{names:?};\n")
}

/// `unsigned NAME:WIDTH;`
fn bitfield(line: &str) -> Option<&str> {
    let (name, width) = line
        .trim()
        .strip_prefix("unsigned ")?
        .trim()
        .split_once(':')?;
    width
        .trim()
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| name.trim())
}

/// bindgen's name of the structure.
fn binding(name: &str) -> &str {
    match name {
        "ngx_http_variable_value_t" => "ngx_variable_value_t",
        other => other,
    }
}

fn compile(source: &Path) {
    let mut build = cc::Build::new();
    build.file(source).warnings(false);
    for path in env::split_paths(&dep("INCLUDE")) {
        build.include(path);
    }
    for flag in dep("CFLAGS").split_whitespace() {
        build.flag(flag);
    }
    build.compile("layout");
}

fn dep(name: &str) -> String {
    env::var(format!("DEP_NGINX_{name}")).unwrap_or_default()
}
