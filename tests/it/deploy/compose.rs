//! The image, and the nodes of `compose.yaml`.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result};
use tidings_tests::directory::Directory;
use tidings_tests::node::{program, run_program};
use yaml_rust2::Yaml;

use super::{certificates, document, findings, list, path, succeeds, text, texts};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// What a service says, or what is merged into it.
fn said<'a>(service: &'a Yaml, name: &str) -> &'a Yaml {
    if service[name].is_badvalue() { &service["<<"][name] } else { &service[name] }
}

/// The names in a mapping.
fn keys(yaml: &Yaml) -> Vec<&str> {
    yaml.as_hash().into_iter().flatten().filter_map(|(name, _)| name.as_str()).collect()
}

/// The volume that a service mounts somewhere.
fn mounted<'a>(service: &'a Yaml, at: &str) -> Option<&'a str> {
    let volumes = texts(said(service, "volumes"));
    volumes.into_iter().find_map(|volume| {
        let (source, target) = volume.split_once(':')?;
        (target.split(':').next() == Some(at)).then_some(source)
    })
}

/// The words of a list in a Dockerfile's instruction: `CMD ["tidings", "node"]`.
fn words(line: &str) -> Result<Vec<String>> {
    let start = line.find('[').with_context(|| line.to_owned())?;
    Ok(serde_json::from_str(&line[start..])?)
}

#[test]
fn the_image_holds_all_that_the_program_needs() -> Result<()> {
    let directory = Directory::create()?;
    let root = directory.path().join("image");
    succeeds(Command::new(path("rootfs.sh")).arg(program()?).arg(&root))?;
    let mut changed = Command::new("chroot");
    let printed =
        succeeds(changed.arg("--userspec=65532:65532").arg(&root).args(["/usr/bin/tidings", "--version"]))?;
    assert_eq!(printed, run_program(&["--version"])?);
    Ok(())
}

#[test]
fn both_images_run_the_same_and_ask_what_the_program_answers() -> Result<()> {
    let of = |file: &str| -> Result<Vec<String>> {
        let text = text(file)?;
        let stage = text.rsplit("FROM scratch").next().context("no stage")?;
        let lines = stage.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(lines.filter(|line| !line.starts_with("COPY ")).map(str::to_owned).collect())
    };
    let (built, source) = (of("Dockerfile")?, of("Dockerfile.source")?);
    assert_eq!(built, source);
    assert!(built.iter().any(|line| line == "USER 65532:65532"), "{built:?}");
    let health = built.iter().find(|line| line.starts_with("HEALTHCHECK ")).context("no HEALTHCHECK")?;
    let asked = words(health)?;
    assert_eq!(asked[0], "tidings");
    let arguments: Vec<&str> = asked[1..].iter().map(String::as_str).chain(["--help"]).collect();
    run_program(&arguments)?;
    Ok(())
}

#[test]
fn every_node_has_its_own_key_and_none_the_authority() -> Result<()> {
    let compose = document("compose.yaml")?;
    let services = &compose["services"];
    let mut volumes = BTreeSet::new();
    for node in NODES {
        let service = &services[node];
        let own = mounted(service, "/certs").with_context(|| format!("{node} has no certificates"))?;
        assert!(volumes.insert(own), "{own} is another's");
        assert_eq!(mounted(&services["certs"], &format!("/certs/{node}")), Some(own));
        assert_eq!(
            said(service, "environment")["TIDINGS_TLS__KEY"].as_str(),
            Some(&*format!("/certs/{node}.key"))
        );
    }
    assert_eq!(texts(&services["certs"]["command"]), NODES);
    let authority = mounted(&services["certs"], "/authority").context("no authority")?;
    for name in keys(services).into_iter().filter(|name| *name != "certs") {
        let mounts = texts(said(&services[name], "volumes"));
        assert!(
            !mounts.iter().any(|mount| mount.starts_with(&format!("{authority}:"))),
            "{name}: {mounts:?}"
        );
    }
    Ok(())
}

#[test]
fn nothing_of_compose_is_reached_from_elsewhere_and_nodes_are_locked_down() -> Result<()> {
    let compose = document("compose.yaml")?;
    let services = &compose["services"];
    for name in keys(services) {
        let service = &services[name];
        for port in texts(said(service, "ports")) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        let image = said(service, "image").as_str().with_context(|| format!("{name} has no image"))?;
        assert!(
            !image.ends_with(":latest") && (image.contains(':') || image.starts_with("tidings")),
            "{image}"
        );
        if name.starts_with('n') || name == "certs" {
            assert_eq!(said(service, "read_only").as_bool(), Some(true), "{name}");
            assert_eq!(texts(said(service, "cap_drop")), ["ALL"], "{name}");
            assert_eq!(texts(said(service, "security_opt")), ["no-new-privileges:true"], "{name}");
        }
    }
    // HTTP listens on loopback: what reads it is in the same network namespace.
    for node in NODES {
        let collector = &services[format!("{node}-collector").as_str()];
        assert_eq!(collector["network_mode"].as_str(), Some(&*format!("service:{node}")));
    }
    Ok(())
}

#[test]
fn files_that_compose_mounts_are_there() -> Result<()> {
    let compose = document("compose.yaml")?;
    let services = &compose["services"];
    let mut mounted = 0;
    for name in keys(services) {
        for volume in texts(said(&services[name], "volumes")) {
            let source = volume.split(':').next().unwrap_or_default();
            if source.starts_with("./") {
                assert!(path(source).exists(), "{name}: {source}");
                mounted += 1;
            } else {
                assert!(keys(&compose["volumes"]).contains(&source), "{name}: {source}");
            }
        }
    }
    assert!(mounted > NODES.len(), "{mounted}");
    Ok(())
}

#[test]
fn nodes_of_compose_have_a_sound_configuration() -> Result<()> {
    let compose = document("compose.yaml")?;
    let directory = Directory::create()?;
    certificates(directory.path(), "shop", &NODES)?;
    for node in NODES {
        let environment = &said(&compose["services"][node], "environment");
        let own = keys(environment).into_iter().map(|name| {
            let value = environment[name].as_str().unwrap_or_default();
            (name, value.replace("/certs", &directory.path().display().to_string()))
        });
        let authority = ("TIDINGS_TLS__CA", directory.path().join("ca.pem").display().to_string());
        let variables: Vec<(&str, String)> = own.chain([authority]).collect();
        let found = findings(&path("compose/tidings.toml"), &variables)?;
        assert!(found.is_empty(), "{node}: {found:?}");
    }
    let config: toml::Table = text("compose/tidings.toml")?.parse()?;
    let collector = document("collector/collector.yaml")?;
    let scraped =
        &collector["receivers"]["prometheus"]["config"]["scrape_configs"][0]["static_configs"][0]["targets"];
    assert_eq!(texts(scraped), [config["http"]["listen"].as_str().context("no HTTP")?]);
    let shown = collector["exporters"]["prometheus"]["endpoint"]
        .as_str()
        .and_then(|address| address.rsplit_once(':'));
    let (_, port) = shown.context("no endpoint")?;
    let prometheus = document("prometheus/prometheus.yaml")?;
    let targets = &list(&prometheus["scrape_configs"])[0]["static_configs"][0]["targets"];
    assert_eq!(texts(targets), NODES.map(|node| format!("{node}:{port}")));
    Ok(())
}
