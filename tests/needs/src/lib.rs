//! `#[needs("mosquitto")]`: where a program is missing, the test that uses it
//! is ignored, and the test runner says so, with the reason, and counts it.

use proc_macro::{TokenStream, TokenTree};

/// Marks a test by the programs that it uses. Stands before `#[test]`.
#[proc_macro_attribute]
pub fn needs(tools: TokenStream, test: TokenStream) -> TokenStream {
    let names: Vec<String> = tools
        .into_iter()
        .filter(|token| matches!(token, TokenTree::Literal(_)))
        .map(|token| token.to_string().trim_matches('"').to_owned())
        .collect();
    let in_list = |list: &str, name: &str| list.split(' ').any(|known| known == name);
    if let Some(unknown) = names.iter().find(|name| !in_list(env!("TOOLS"), name)) {
        return attribute(&format!("compile_error!(\"{unknown} is not in TOOLS of tests/needs/build.rs\");"));
    }
    let missing: Vec<&String> = names.iter().filter(|name| in_list(env!("MISSING"), name)).collect();
    let mut marked = match missing.first() {
        Some(name) => attribute(&format!("#[ignore = \"{name} is not installed\"]")),
        None => TokenStream::new(),
    };
    marked.extend(test);
    marked
}

fn attribute(text: &str) -> TokenStream {
    text.parse().unwrap_or_default()
}
