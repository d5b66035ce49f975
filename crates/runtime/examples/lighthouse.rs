//! Continues a prompt greedily: `lighthouse CHECKPOINT [f32|int4|int8] [TOKENS]`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use pilotfish_architectures::{Checkpoint, Message};
use pilotfish_graph::Storage;
use pilotfish_model::{CausalModel, LogitForm, Step, Steps};
use pilotfish_runtime::{LoadOptions, OnnxCausal};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("which checkpoint?")?;
    let storage = match args.next().as_deref() {
        Some("int4") => Storage::Int4 { block: 32 },
        Some("int8") => Storage::Int8 { block: 32 },
        _ => Storage::F32,
    };
    let tokens: usize = args.next().map_or(Ok(48), |count| count.parse())?;
    let checkpoint = Checkpoint::open(path)?;
    let tokenizer = checkpoint.tokenizer()?;
    let question = "Write a short story about a lighthouse keeper.";
    let raw = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    if let Some(template) = checkpoint.chat_template()? {
        println!("{:?}", template.render(&[Message::user(question)], true)?);
    }
    let start = Instant::now();
    let mut model = OnnxCausal::from_checkpoint(&checkpoint, &LoadOptions::default().storage(storage))?;
    println!("{} loaded in {:.2?}", model.info().name, start.elapsed());
    let prompt = tokenizer.encode(&raw, false)?;
    let mut next = model.step(&Step::chain(&prompt).form(LogitForm::Argmax))?.logits.argmax(0)?;
    let mut text = tokenizer.stream();
    let start = Instant::now();
    for _ in 0..tokens {
        print!("{}", text.push(next));
        next = model.step(&Step::chain(&[next]).form(LogitForm::Argmax))?.logits.argmax(0)?;
    }
    println!("\n{:.2} ms a token", start.elapsed().as_secs_f64() * 1e3 / tokens as f64);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("{}", status.lines().filter(|line| line.starts_with("VmHWM")).collect::<String>());
    Ok(())
}
