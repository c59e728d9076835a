//! The manifests for Kubernetes: that they agree with each other, with the program and with its configuration.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;
use tidings_tests::directory::Directory;
use tidings_tests::node::run_program;
use yaml_rust2::Yaml;

use super::{certificates, document, documents, findings, list, path, text, texts};

/// Both ways to run nodes, with the kind that runs their pods.
const VARIANTS: [(&str, &str); 2] = [("standalone", "StatefulSet"), ("embedded", "Deployment")];

/// The cluster that the manifests are of, and its one port between nodes.
const CLUSTER: &str = "shop";
const PORT: i64 = 7400;

/// Every resource of a variant, as its kustomization lists them.
fn resources(directory: &str) -> Result<Vec<Yaml>> {
    let here = format!("kubernetes/{directory}");
    let kustomization = document(&format!("{here}/kustomization.yaml"))?;
    let mut found = Vec::new();
    for name in texts(&kustomization["resources"]) {
        match name {
            "../base" => found.extend(resources("base")?),
            // A configuration of its own.
            "../../collector" => {}
            file => found.extend(documents(&format!("{here}/{file}"))?),
        }
    }
    Ok(found)
}

fn of_kind<'a>(resources: &'a [Yaml], kind: &'a str) -> impl Iterator<Item = &'a Yaml> {
    resources.iter().filter(move |resource| resource["kind"].as_str() == Some(kind))
}

fn one<'a>(resources: &'a [Yaml], kind: &'a str) -> Result<&'a Yaml> {
    of_kind(resources, kind).next().with_context(|| format!("no {kind}"))
}

/// Labels, or a selector of such.
fn labels(yaml: &Yaml) -> BTreeSet<(&str, &str)> {
    let pairs = yaml.as_hash().into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((name.as_str()?, value.as_str()?))).collect()
}

/// What a container does at a moment of its life.
fn commands(container: &Yaml) -> impl Iterator<Item = Vec<&str>> {
    let probes = ["startupProbe", "livenessProbe", "readinessProbe"].map(|probe| &container[probe]);
    let all = probes.into_iter().chain([&container["lifecycle"]["preStop"]]);
    all.map(|moment| texts(&moment["exec"]["command"])).filter(|command| !command.is_empty())
}

#[test]
fn every_manifest_is_part_of_a_kustomization() -> Result<()> {
    for directory in ["base", "standalone", "embedded"] {
        let here = format!("kubernetes/{directory}");
        let kustomization = document(&format!("{here}/kustomization.yaml"))?;
        let mut listed: BTreeSet<&str> = texts(&kustomization["resources"]).into_iter().collect();
        listed.extend(list(&kustomization["configMapGenerator"]).iter().flat_map(|map| texts(&map["files"])));
        for entry in fs::read_dir(path(&here))? {
            let name = entry?.file_name();
            let name = name.to_str().context("a name that is not UTF-8")?;
            assert!(name == "kustomization.yaml" || listed.remove(name), "{here}/{name} is not listed");
        }
        listed.retain(|name| !name.starts_with("../"));
        assert!(listed.is_empty(), "{here} lacks {listed:?}");
    }
    Ok(())
}

#[test]
fn selectors_choose_the_pods_of_nodes() -> Result<()> {
    for (variant, kind) in VARIANTS {
        let resources = resources(variant)?;
        let workload = one(&resources, kind)?;
        let pods = labels(&workload["spec"]["template"]["metadata"]["labels"]);
        assert!(pods.contains(&("tidings.cluster", CLUSTER)), "{variant}: {pods:?}");
        let matched = ["PodDisruptionBudget", kind].map(|kind| one(&resources, kind));
        let mut selectors = Vec::new();
        for resource in matched {
            selectors.push(&resource?["spec"]["selector"]["matchLabels"]);
        }
        selectors.extend(of_kind(&resources, "Service").map(|service| &service["spec"]["selector"]));
        let policies = of_kind(&resources, "NetworkPolicy");
        selectors.extend(policies.map(|policy| &policy["spec"]["podSelector"]["matchLabels"]));
        assert!(selectors.len() > 4, "{variant}: {}", selectors.len());
        for selector in selectors.into_iter().map(labels) {
            assert!(!selector.is_empty() && selector.is_subset(&pods), "{variant}: {selector:?} of {pods:?}");
        }
    }
    Ok(())
}

#[test]
fn nodes_reach_each_other_over_one_port() -> Result<()> {
    let config: toml::Table = text("kubernetes/standalone/tidings.toml")?.parse()?;
    let listen = config["cluster"]["listen"].as_str().context("no address")?;
    assert!(listen.ends_with(&format!(":{PORT}")), "{listen}");
    for (variant, kind) in VARIANTS {
        let resources = resources(variant)?;
        let headless = of_kind(&resources, "Service")
            .find(|service| service["spec"]["clusterIP"].as_str() == Some("None"));
        let headless = headless.context("no headless Service")?;
        // Who is not ready yet finds the others by it.
        assert_eq!(headless["spec"]["publishNotReadyAddresses"].as_bool(), Some(true));
        let port = &headless["spec"]["ports"][0];
        assert_eq!((port["protocol"].as_str(), port["port"].as_i64()), (Some("UDP"), Some(PORT)));
        let seed = format!("{}:{PORT}", headless["metadata"]["name"].as_str().context("no name")?);
        assert!(config["cluster"]["seeds"].to_string().contains(&seed), "{seed}");
        let containers = &one(&resources, kind)?["spec"]["template"]["spec"]["containers"];
        let ports = list(containers).iter().flat_map(|container| list(&container["ports"]));
        let named: Vec<&Yaml> = ports.filter(|open| open["name"] == port["targetPort"]).collect();
        assert_eq!(named.len(), 1, "{variant}");
        assert_eq!(
            (named[0]["protocol"].as_str(), named[0]["containerPort"].as_i64()),
            (Some("UDP"), Some(PORT))
        );
        let policy = of_kind(&resources, "NetworkPolicy")
            .find(|policy| policy["metadata"]["name"].as_str() == Some("shop-nodes"));
        let policy = &policy.context("no policy of nodes")?["spec"];
        for (direction, side) in [("ingress", "from"), ("egress", "to")] {
            let rule = &policy[direction][0];
            let peers = labels(&rule[side][0]["podSelector"]["matchLabels"]);
            assert!(peers.contains(&("tidings.cluster", CLUSTER)), "{direction}: {peers:?}");
            let open = &rule["ports"][0];
            assert_eq!(
                (open["protocol"].as_str(), open["port"].as_i64()),
                (Some("UDP"), Some(PORT)),
                "{direction}"
            );
        }
    }
    Ok(())
}

#[test]
fn pods_may_do_nothing_but_run() -> Result<()> {
    for (variant, kind) in VARIANTS {
        let resources = resources(variant)?;
        let granted = resources
            .iter()
            .filter_map(|resource| resource["kind"].as_str())
            .find(|kind| kind.contains("Role"));
        assert_eq!(granted, None, "{variant}");
        assert_eq!(one(&resources, "ServiceAccount")?["automountServiceAccountToken"].as_bool(), Some(false));
        let pod = &one(&resources, kind)?["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"].as_bool(), Some(false), "{variant}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true), "{variant}");
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"].as_str(),
            Some("RuntimeDefault"),
            "{variant}"
        );
        ensure!(!list(&pod["containers"]).is_empty(), "{variant} has no containers");
        for container in list(&pod["containers"]) {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"].as_bool(), Some(false), "{variant}");
            assert_eq!(context["readOnlyRootFilesystem"].as_bool(), Some(true), "{variant}");
            assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{variant}");
            assert!(
                container["resources"]["limits"]["memory"].as_str().is_some(),
                "{variant}: memory has no bound"
            );
            assert!(!container["readinessProbe"].is_badvalue(), "{variant}: no readiness probe");
        }
    }
    Ok(())
}

#[test]
fn probes_ask_what_the_program_answers() -> Result<()> {
    let resources = resources("standalone")?;
    let containers = &one(&resources, "StatefulSet")?["spec"]["template"]["spec"]["containers"];
    let node = list(containers).iter().find(|container| container["name"].as_str() == Some("tidings"));
    let node = node.context("no node")?;
    let mut asked = 0;
    for command in commands(node) {
        assert_eq!(command[0], "tidings");
        run_program(&[&command[1..], &["--help"]].concat())?;
        asked += 1;
    }
    assert_eq!(asked, 4, "three probes, and what is done before a stop");
    assert_eq!(texts(&node["readinessProbe"]["exec"]["command"]), ["tidings", "check", "ready"]);
    Ok(())
}

/// A node's certificate names it and its cluster; what cert-manager is asked for has to say the same.
#[test]
fn cert_manager_is_asked_for_the_names_that_nodes_check() -> Result<()> {
    let directory = Directory::create()?;
    certificates(directory.path(), CLUSTER, &["shop-0"])?;
    let file = directory.path().join("shop-0.pem");
    let said =
        run_program(&["certs", "inspect", "--json", file.to_str().context("a path that is not UTF-8")?])?;
    let said: Json = serde_json::from_str(&said)?;
    let names: BTreeSet<&str> =
        said["sans"].as_array().context("no names")?.iter().filter_map(Json::as_str).collect();
    for (variant, kind) in VARIANTS {
        let resources = resources(variant)?;
        let volumes = &one(&resources, kind)?["spec"]["template"]["spec"]["volumes"];
        let driver =
            list(volumes).iter().find(|volume| !volume["csi"].is_badvalue()).context("no certificates")?;
        let attribute = |name: &str| {
            let value =
                driver["csi"]["volumeAttributes"][format!("csi.cert-manager.io/{name}").as_str()].as_str();
            value.map(|value| value.replace("${POD_NAME}", "shop-0")).with_context(|| format!("no {name}"))
        };
        let asked = [attribute("dns-names")?, attribute("uri-sans")?];
        for name in &asked {
            assert!(
                names.iter().any(|known| known.contains(name.as_str())),
                "{variant}: {name} is none of {names:?}"
            );
        }
        assert_eq!(names.len(), asked.len(), "{names:?}");
        let usages = attribute("key-usages")?;
        let usages: BTreeSet<&str> = usages.split(',').collect();
        assert_eq!(usages, BTreeSet::from(["client auth", "digital signature", "server auth"]));
        let issuer = attribute("issuer-name")?;
        let issuers = of_kind(&resources, "Issuer").filter(|found| !found["spec"]["ca"].is_badvalue());
        let named: Vec<_> = issuers.filter_map(|found| found["metadata"]["name"].as_str()).collect();
        assert_eq!(named, [issuer.as_str()]);
    }
    Ok(())
}

#[test]
fn standalone_nodes_have_a_sound_configuration() -> Result<()> {
    let resources = resources("standalone")?;
    let containers = &one(&resources, "StatefulSet")?["spec"]["template"]["spec"]["containers"];
    let variables = list(&containers[0]["env"]);
    let given: Vec<&str> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(given, ["POD_IP", "TIDINGS_CLUSTER__NODE_ID", "TIDINGS_CLUSTER__ADVERTISE"]);
    let directory = Directory::create()?;
    certificates(directory.path(), CLUSTER, &["shop-0"])?;
    let file = |name: &str| directory.path().join(name).display().to_string();
    let variables = [
        (given[1], "shop-0".to_owned()),
        (given[2], variables[2]["value"].as_str().context("no value")?.replace("$(POD_IP)", "192.0.2.7")),
        ("TIDINGS_TLS__CA", file("ca.pem")),
        ("TIDINGS_TLS__CERT", file("shop-0.pem")),
        ("TIDINGS_TLS__KEY", file("shop-0.key")),
    ];
    let found = findings(&path("kubernetes/standalone/tidings.toml"), &variables)?;
    assert!(found.is_empty(), "{found:?}");
    Ok(())
}
