//! docker/compose.yaml as Docker Compose itself reads it, without an engine: it is valid, nothing in it is open to other machines, and
//! no service may do more than it needs.

use std::{
    env,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/docker-compose");
const DOCKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker");

/// Returns the configuration that Docker Compose reads from these files; none where it is not installed, and `CI` is not set.
fn config(files: &[&str]) -> Option<Value> {
    if !Path::new(PROGRAM).exists() {
        let missing = "there is no Docker Compose: `cargo xtask setup containers` brings it";
        assert!(env::var_os("CI").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
        return None;
    }
    let mut command = Command::new(PROGRAM);
    for file in files {
        command.args(["--file", file]);
    }
    let output = command.args(["config", "--format", "json"]).current_dir(DOCKER).output().unwrap();
    let Output { status, stdout, stderr } = output;
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success() && stderr.is_empty(), "{stderr}");
    Some(serde_json::from_slice(&stdout).unwrap())
}

#[test]
fn nothing_is_open_and_nobody_may_do_more_than_needed() {
    let Some(config) = config(&["compose.yaml"]) else { return };
    let services = config["services"].as_object().unwrap();
    assert_eq!(
        services.keys().collect::<Vec<_>>(),
        ["certs", "controller", "data", "grafana", "prometheus", "trainer"]
    );
    for (name, service) in services {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"][0], "ALL", "{name}");
        assert_eq!(service["security_opt"][0], "no-new-privileges:true", "{name}");
        assert!(service["user"].is_null() && service["privileged"].is_null(), "{name}");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
        }
        match service["build"]["dockerfile"].as_str() {
            Some(file) => assert!(Path::new(DOCKER).join("..").join(file).exists(), "{file}"),
            None => {
                let image = service["image"].as_str().unwrap();
                let (_, tag) = image.rsplit_once(':').unwrap();
                assert!(tag.contains('.'), "{image} may be another one tomorrow");
            }
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            if volume["type"] == "bind" {
                assert!(Path::new(volume["source"].as_str().unwrap()).exists(), "{volume}");
                assert_eq!(volume["read_only"], true, "{volume}");
            }
        }
        if service["restart"] != "no" {
            assert!(service["deploy"]["resources"]["limits"]["memory"].is_string(), "{name}");
        }
    }
}

#[test]
fn with_a_gpu_the_trainer_is_the_one_with_cuda() {
    let Some(config) = config(&["compose.yaml", "compose.gpu.yaml"]) else { return };
    let trainer = &config["services"]["trainer"];
    assert_eq!(trainer["build"]["args"]["DEVICE"], "cuda");
    assert_eq!(trainer["image"], config["services"]["data"]["image"]);
    let device = &trainer["deploy"]["resources"]["reservations"]["devices"][0];
    assert_eq!((&device["driver"], &device["capabilities"][0]), (&"nvidia".into(), &"gpu".into()));
    // What the other file says stays.
    assert_eq!(trainer["environment"]["ASNG_TLS_CA"], "/etc/asng/ca.pem");
    assert_eq!(trainer["read_only"], true);
}
