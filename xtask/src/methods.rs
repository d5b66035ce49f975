//! `methods`.

use anyhow::{Result, bail};
use pilotfish_pipeline::experiments::ALL;
use pilotfish_pipeline::register::{PAGE, Register};

pub(crate) fn run(check: bool) -> Result<()> {
    let root = crate::root();
    let register = Register::open(&root)?;
    let names: Vec<_> = ALL.iter().map(|experiment| experiment.name).collect();
    register.check(&root, &names)?;
    let (page, path) = (register.page(), root.join(PAGE));
    let same = std::fs::read_to_string(&path).is_ok_and(|there| there.replace("\r\n", "\n") == page);
    match (same, check) {
        (true, _) => println!("{} methods; {PAGE} is up to date", register.method.len()),
        (false, true) => bail!("{PAGE} is stale; run `cargo xtask methods` and commit it"),
        (false, false) => {
            std::fs::write(&path, page)?;
            println!("wrote {PAGE}");
        }
    }
    Ok(())
}
