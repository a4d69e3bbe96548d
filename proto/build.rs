//! Generates the gRPC types and service from `v1/agent.proto`, where the feature `grpc` asks for them. No `protoc` is
//! needed: protox is a compiler in Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "grpc")]
    generate()?;
    Ok(())
}

#[cfg(feature = "grpc")]
fn generate() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=v1/agent.proto");
    let files = protox::compile(["v1/agent.proto"], ["."])?;
    // A config is up to 4 MiB: `bytes` lets it be shared instead of copied. Without tonic's own transport, this crate
    // needs nothing of it but the codec: who dials or listens chooses the features.
    tonic_prost_build::configure()
        .bytes(".")
        .build_transport(false)
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(files)?;
    Ok(())
}
