use std::path::Path;

use pilotfish_architectures::{CausalNetwork, Checkpoint};
use pilotfish_model::Token;
use pilotfish_runtime::{GraphPass, LoadOptions, OnnxCausal, Products};
use pilotfish_sparsity::gate::{Gate, GateMethod, calibrate_gates};
use pilotfish_sparsity::plan::{LayerPlan, Plan};
use pilotfish_sparsity::sequential::{Hidden, Layers, advance, linears};
use pilotfish_sparsity::wina::{Ends, Rotated, Rotations};
use pilotfish_sparsity::{Engine, Result};
use sha2::{Digest, Sha256};

use super::{Decoder, plan_of};

/// The layers of a network as a method sees them: rotated or not.
///
/// # Errors
/// Whatever `work` refuses.
pub fn with_layers<T, E>(
    decoder: &Decoder<'_>,
    rotations: Option<&Rotations>,
    work: impl FnOnce(&dyn Layers) -> Result<T, E>,
) -> Result<T, E> {
    match rotations {
        Some(rotations) => work(&Rotated::new(decoder, rotations)),
        None => work(decoder),
    }
}

/// Texts as the first layer reads them: embedded, and turned if the model is rotated.
///
/// # Errors
/// A token outside the vocabulary.
pub fn embedded(
    decoder: &Decoder<'_>,
    texts: &[Vec<Token>],
    rotations: Option<&Rotations>,
) -> Result<Vec<Hidden>> {
    let turned = |text: &Vec<Token>| {
        let hidden = decoder.embed(text)?;
        rotations.map_or(Ok(hidden.clone()), |rotations| rotations.turn(0, &hidden))
    };
    texts.iter().map(turned).collect()
}

/// A plan of gates at one sparsity for all that a method gates: thresholds from what the dense model gives on
/// calibration texts, or, without texts, each token's largest scores.
///
/// # Errors
/// A sparsity that is not within 0 and 1, whatever the engine refuses.
pub fn gate_plan(
    decoder: &Decoder<'_>,
    method: GateMethod,
    sparsity: f64,
    calibration: Option<&[Vec<Token>]>,
    rotations: Option<&Rotations>,
    engine: &mut dyn Engine,
) -> Result<Plan> {
    let mut plan = Plan::new(decoder.network().config().family.to_owned());
    plan.gates = Some(method);
    let mut hidden = embedded(decoder, calibration.unwrap_or(&[]), rotations)?;
    with_layers(decoder, rotations, |layers| {
        for index in 0..layers.count() {
            let graph = layers.layer(index)?;
            let gates: Vec<(String, Gate)> = if calibration.is_none() {
                let top = |(name, _, _): (String, _, _)| {
                    method.score(&name).map(|score| (name, Gate::top_k(score, sparsity)))
                };
                linears(&graph).into_iter().filter_map(top).collect()
            } else {
                let found = calibrate_gates(layers, &graph, &hidden, engine, method, &|_| Some(sparsity))?;
                // Thresholds are those of the dense model.
                advance(layers, &graph, &mut hidden, engine)?;
                found.gates.into_iter().collect()
            };
            for (name, gate) in gates {
                gate.check()?;
                plan.layers.insert(name, LayerPlan { gate: Some(gate), ..LayerPlan::default() });
            }
        }
        Ok(plan)
    })
}

/// The change that runs a plan in a network's layers; rotated first where its gates are of a rotated model.
///
/// # Errors
/// A network that cannot be rotated; layers in the plan that it does not have.
pub fn pass_of(plan: &Plan, network: &CausalNetwork) -> Result<GraphPass> {
    plan.check()?;
    let decoder = Decoder::new(network);
    let mut names = Vec::new();
    for index in 0..decoder.count() {
        names.extend(linears(&decoder.layer(index)?).into_iter().map(|(name, _, _)| name));
    }
    plan.check_names(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let rotations = match plan.gates {
        Some(gates) if gates.rotates() => Some(Rotations::of(&decoder)?),
        _ => None,
    };
    let digest = Sha256::digest(plan.to_json());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let plan = plan.clone();
    Ok(GraphPass::new(format!("plan {digest}"), move |graph| {
        let rotated = rotations.as_ref().map(|rotations| rotations.apply(graph, Ends::Kept)).transpose()?;
        Ok(plan.apply(rotated.as_ref().unwrap_or(graph))?)
    }))
}

/// Options that run a plan: its pass, and our kernels where it stores something for them.
///
/// # Errors
/// As [`pass_of`].
pub fn planned(load: LoadOptions, plan: &Plan, network: &CausalNetwork) -> Result<LoadOptions> {
    let load = load.pass(pass_of(plan, network)?);
    Ok(match plan.layers.values().any(|layer| layer.packed) {
        true => load.products(Products::Pilotfish),
        false => load,
    })
}

/// Opens a model; a folder with a plan is run by it.
///
/// # Errors
/// A plan that cannot be read or does not fit, a model that cannot be opened.
pub fn open(
    checkpoint: &Checkpoint,
    load: &LoadOptions,
) -> Result<OnnxCausal, Box<dyn std::error::Error + Send + Sync>> {
    let path: &Path = checkpoint.path();
    let plan = if path.is_dir() { plan_of(path)? } else { None };
    Ok(match plan {
        Some(plan) => {
            let load = planned(load.clone(), &plan, checkpoint.causal()?)?;
            OnnxCausal::from_checkpoint(checkpoint, &load)?
        }
        None => OnnxCausal::from_checkpoint(checkpoint, load)?,
    })
}
