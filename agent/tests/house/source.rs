//! Reads the workspace's Rust files and says of each what the house rules ask about. Knows syntax, no rule.

use std::{collections::BTreeSet, fs, path::Path};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Block, ExprUnsafe, Field, File, ImplItemFn, Item, ItemEnum, ItemFn, ItemForeignMod, ItemImpl, ItemMod,
    ItemTrait, ItemType, Meta, Signature, TraitItemFn, UseTree, Visibility,
    spanned::Spanned,
    visit::{self, Visit},
};

/// One file, as plain facts.
pub(crate) struct Source {
    /// Relative to the workspace, with `/`.
    pub path: String,
    pub text: String,
    /// What the product is built from: not a test, and not below `#[cfg(test)]` in its parent.
    pub production: bool,
    /// Lines before the first `#[cfg(test)]`: what the style's sizes count.
    pub production_lines: usize,
    /// Functions outside of `#[cfg(test)]`.
    pub functions: Vec<Function>,
    /// Lines where something is `unsafe`, in tests too.
    pub unsafe_lines: Vec<usize>,
    /// Types of vendor crates in `pub` signatures, fields and aliases, with their lines.
    pub public_vendor_types: Vec<(String, usize)>,
    /// Every identifier with its line and the character after it; macro bodies count, comments and strings do not.
    pub words: Vec<(String, usize, Option<char>)>,
    /// The files, without `.rs`, of `#[cfg(test)] mod name;`.
    test_modules: Vec<String>,
}

/// A function of a file, with the lines from its `fn` to its closing brace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Function {
    pub lines: usize,
    pub path: String,
    pub name: String,
}

/// Every `.rs` file below the given folders of the workspace, in order of path; types of `vendors` are looked for.
///
/// # Panics
/// When a file can't be read or is not Rust: then no other figure can be trusted.
pub(crate) fn read(workspace: &Path, folders: &[&str], vendors: &[&str]) -> Vec<Source> {
    let mut paths = BTreeSet::new();
    for folder in folders {
        walk(&workspace.join(folder), &mut |path| {
            if path.extension().is_some_and(|extension| extension == "rs") {
                paths.insert(path.to_path_buf());
            }
        });
    }
    let mut sources: Vec<_> = paths.iter().map(|path| parse(workspace, path, vendors)).collect();
    let tests: BTreeSet<_> = sources.iter().flat_map(|source| source.test_modules.clone()).collect();
    for source in &mut sources {
        let stem = source.path.trim_end_matches(".rs");
        source.production &= !tests.iter().any(|test| stem == test || stem.starts_with(&format!("{test}/")));
    }
    sources
}

/// Calls `visit` with every file below `folder`; build output and version control are left out.
pub(crate) fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.map(|entry| entry.expect("a folder of the workspace is readable")) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().expect("a folder of the workspace is readable");
        if kind.is_file() {
            visit(&path);
        } else if kind.is_dir() && name != ".git" && name != "target" && !name.starts_with("target-") {
            walk(&path, visit);
        }
    }
}

fn parse(workspace: &Path, path: &Path, vendors: &[&str]) -> Source {
    let text = fs::read_to_string(path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
    let syntax = syn::parse_file(&text).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
    let path = path.strip_prefix(workspace).expect("it was found there").to_string_lossy().into_owned();
    let mut functions = Functions { path: &path, functions: Vec::new() };
    functions.visit_file(&syntax);
    let mut unsafety = Unsafe { lines: Vec::new() };
    unsafety.visit_file(&syntax);
    let mut words = Vec::new();
    collect_words(text.parse().expect("it was parsed already"), &mut words);
    Source {
        production: path.contains("/src/") || path.ends_with("/build.rs"),
        production_lines: text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count(),
        functions: functions.functions,
        unsafe_lines: unsafety.lines,
        public_vendor_types: public_vendor_types(&syntax, vendors),
        words,
        test_modules: test_modules(&path, &syntax),
        path,
        text,
    }
}

fn public_vendor_types(syntax: &File, vendors: &[&str]) -> Vec<(String, usize)> {
    let mut names = vendors.iter().map(|vendor| (*vendor).to_owned()).collect();
    for item in &syntax.items {
        if let Item::Use(import) = item {
            imported(&import.tree, false, vendors, &mut names);
        }
    }
    let mut found = PublicPaths { names, is_public: false, uses: Vec::new() };
    found.visit_file(syntax);
    found.uses
}

fn test_modules(path: &str, syntax: &File) -> Vec<String> {
    let stem = path.trim_end_matches(".rs");
    let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
    let folder = if matches!(name, "lib" | "main") { folder } else { stem };
    let module = |item: &Item| match item {
        Item::Mod(module) if module.content.is_none() && is_test(&module.attrs) => {
            Some(format!("{folder}/{}", module.ident))
        }
        _ => None,
    };
    syntax.items.iter().filter_map(module).collect()
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        Meta::NameValue(_) => false,
    })
}

struct Functions<'a> {
    path: &'a str,
    functions: Vec<Function>,
}

impl Functions<'_> {
    fn add(&mut self, signature: &Signature, block: &Block) {
        let lines = block.brace_token.span.close().end().line - signature.span().start().line + 1;
        self.functions.push(Function { lines, path: self.path.to_owned(), name: signature.ident.to_string() });
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_impl(&mut self, implementation: &'ast ItemImpl) {
        if !is_test(&implementation.attrs) {
            visit::visit_item_impl(self, implementation);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        if !is_test(&function.attrs) {
            self.add(&function.sig, &function.block);
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !is_test(&function.attrs) {
            self.add(&function.sig, &function.block);
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

struct Unsafe {
    lines: Vec<usize>,
}

impl<'ast> Visit<'ast> for Unsafe {
    fn visit_expr_unsafe(&mut self, block: &'ast ExprUnsafe) {
        self.lines.push(block.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, implementation: &'ast ItemImpl) {
        self.lines.extend(implementation.unsafety.map(|token| token.span.start().line));
        visit::visit_item_impl(self, implementation);
    }

    fn visit_item_trait(&mut self, definition: &'ast ItemTrait) {
        self.lines.extend(definition.unsafety.map(|token| token.span.start().line));
        visit::visit_item_trait(self, definition);
    }

    fn visit_item_foreign_mod(&mut self, block: &'ast ItemForeignMod) {
        self.lines.push(block.abi.extern_token.span.start().line);
        visit::visit_item_foreign_mod(self, block);
    }
}

/// Adds the names that a `use` of one of `vendors` brings into the file.
fn imported(tree: &UseTree, of_vendor: bool, vendors: &[&str], names: &mut BTreeSet<String>) {
    match tree {
        UseTree::Path(path) => {
            let of_vendor = of_vendor || vendors.iter().any(|vendor| path.ident == *vendor);
            imported(&path.tree, of_vendor, vendors, names);
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| imported(tree, of_vendor, vendors, names)),
        UseTree::Name(name) if of_vendor => _ = names.insert(name.ident.to_string()),
        UseTree::Rename(name) if of_vendor => _ = names.insert(name.rename.to_string()),
        UseTree::Name(_) | UseTree::Rename(_) | UseTree::Glob(_) => {}
    }
}

struct PublicPaths {
    names: BTreeSet<String>,
    is_public: bool,
    uses: Vec<(String, usize)>,
}

impl PublicPaths {
    fn within(&mut self, is_public: bool, visit: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.is_public, is_public);
        visit(self);
        self.is_public = outer;
    }
}

impl<'ast> Visit<'ast> for PublicPaths {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.within(matches!(function.vis, Visibility::Public(_)), |this| this.visit_signature(&function.sig));
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.within(matches!(function.vis, Visibility::Public(_)), |this| this.visit_signature(&function.sig));
    }

    fn visit_field(&mut self, field: &'ast Field) {
        self.within(matches!(field.vis, Visibility::Public(_)), |this| this.visit_type(&field.ty));
    }

    fn visit_item_enum(&mut self, definition: &'ast ItemEnum) {
        if matches!(definition.vis, Visibility::Public(_)) {
            for field in definition.variants.iter().flat_map(|variant| &variant.fields) {
                self.within(true, |this| this.visit_type(&field.ty));
            }
        }
    }

    fn visit_item_type(&mut self, alias: &'ast ItemType) {
        self.within(matches!(alias.vis, Visibility::Public(_)), |this| this.visit_type(&alias.ty));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let first = &path.segments[0].ident;
        if self.is_public && self.names.contains(&first.to_string()) {
            self.uses.push((first.to_string(), first.span().start().line));
        }
        visit::visit_path(self, path);
    }
}

fn collect_words(tokens: TokenStream, words: &mut Vec<(String, usize, Option<char>)>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(word) => {
                let next = match tokens.peek() {
                    Some(TokenTree::Punct(punct)) => Some(punct.as_char()),
                    _ => None,
                };
                words.push((word.to_string(), word.span().start().line, next));
            }
            TokenTree::Group(group) => collect_words(group.stream(), words),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}
