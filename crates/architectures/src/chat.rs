//! Chat templates: conversations as the text a model was tuned on.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::{ArchitectureError, Result};

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }

    /// A turn of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }

    /// Instructions.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".into(), content: content.into() }
    }
}

/// A Jinja template as checkpoints carry it.
///
/// ```
/// use pilotfish_architectures::{ChatTemplate, Message};
/// let template = "{% for m in messages %}<{{ m['role'] }}>{{ m.content.strip() }}{% endfor %}\
///                 {% if add_generation_prompt %}<assistant>{% endif %}";
/// let template = ChatTemplate::new(template, "".into(), "</s>".into())?;
/// assert_eq!(template.render(&[Message::user(" hi ")], true)?, "<user>hi<assistant>");
/// # Ok::<(), pilotfish_architectures::ArchitectureError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// Steps a template may take: a template that loops without end is stopped.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// A template and the texts of the tokens it may name.
    ///
    /// # Errors
    /// A template that does not parse.
    pub fn new(source: &str, bos: String, eos: String) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(template)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", source.to_owned()).map_err(template)?;
        Ok(Self { environment, bos, eos })
    }

    /// The conversation as text; with `generate`, followed by what opens the model's turn.
    ///
    /// # Errors
    /// The template refuses the conversation or fails.
    pub fn render(&self, messages: &[Message], generate: bool) -> Result<String> {
        let chat = self.environment.get_template("chat").map_err(template)?;
        chat.render(context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => generate,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            // Templates test these against none, as Hugging Face passes them.
            tools => Value::from(()),
            documents => Value::from(()),
        })
        .map_err(template)
    }
}

fn template(error: minijinja::Error) -> ArchitectureError {
    ArchitectureError::Template(format!("{error:#}"))
}
