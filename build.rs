//! Compiles `proto/` into Rust. Messages that the server only ever writes from stored bytes
//! (key-value pairs, events, range answers) are replaced by types of `crate::proto` that carry
//! their encoded form, so that the hot paths copy bytes instead of building structures.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = [
        "proto/kv.proto",
        "proto/auth.proto",
        "proto/membership.proto",
        "proto/rpc.proto",
        "proto/raft_internal.proto",
        "proto/lock.proto",
        "proto/election.proto",
        "proto/health.proto",
        "proto/peer.proto",
    ];
    let rustc = command(
        &std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()),
        &["--version"],
    );
    let rustc = rustc.split(' ').nth(1).unwrap_or("unknown").to_owned();
    println!("cargo:rustc-env=ETCHED_RUST_VERSION={rustc}");
    let commit = command("git", &["rev-parse", "--short", "HEAD"]);
    println!("cargo:rustc-env=ETCHED_GIT_SHA={commit}");
    // `.git/HEAD` names a branch and stays as it is at a commit; its log grows. A file that is
    // not there would have every build start anew.
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if std::path::Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    // A prebuilt RocksDB (see scripts/) does not name the C++ library that it needs.
    match std::env::var("CARGO_CFG_TARGET_FEATURE") {
        // scripts/package: a program that loads a library although it is linked statically ends
        // before its first line. It comes last, since the allocator has some of its functions too.
        Ok(features) if features.split(',').any(|one| one == "crt-static") => {
            let group = "-lstdc++ -lgcc_eh -lm -lc";
            let linked = format!("-Wl,-Bstatic -Wl,--start-group {group} -Wl,--end-group");
            for argument in linked.split(' ') {
                println!("cargo:rustc-link-arg-bins={argument}");
            }
        }
        _ => println!("cargo:rustc-link-lib=dylib=stdc++"),
    }
    for file in protos {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    config.extern_path(".mvccpb.KeyValue", "crate::proto::EncodedKv");
    config.extern_path(".mvccpb.Event", "crate::proto::EncodedEvent");
    config.extern_path(".etcdserverpb.RangeResponse", "crate::proto::RangeResponse");
    // Their passwords and tokens are in no log: `crate::proto` prints the rest of them.
    config.skip_debug([
        ".etcdserverpb.AuthUserAddRequest",
        ".etcdserverpb.AuthUserChangePasswordRequest",
        ".etcdserverpb.AuthenticateRequest",
        ".etcdserverpb.AuthenticateResponse",
        ".etcdserverpb.InternalAuthenticateRequest",
    ]);
    // What JSON is translated by; see `src/gateway/`.
    let descriptors = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptors)
        // Members call each other, and a discovery service.
        .build_client(true)
        .build_transport(false)
        .compile_with_config(config, &protos, &["proto"])?;
    Ok(())
}

/// What a command prints; `unknown` where it cannot be run.
fn command(program: &str, arguments: &[&str]) -> String {
    std::process::Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}
