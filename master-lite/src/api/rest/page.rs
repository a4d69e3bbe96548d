//! The API's document as a page for people: one HTML text, made once from the JSON, without scripts and without anything
//! from elsewhere. A reader, not a client: it sends no requests.

use serde_json::Value;

/// Methods in the order in which they are shown.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;\
background:#fff}code,pre{font-family:ui-monospace,monospace;font-size:.92em}h2{margin-top:2.5rem;border-bottom:1px solid #d0d7de}\
details{border:1px solid #d0d7de;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}summary{cursor:pointer}\
.method{display:inline-block;min-width:4.5rem;font-weight:700;text-transform:uppercase}.role{float:right;color:#59636e}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0}\
a{color:#0550ae}@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}a{color:#79b8ff}\
h2,details{border-color:#30363d}.role{color:#9198a1}}";

/// The page of a document.
pub(super) fn render(document: &Value) -> String {
    let info = &document["info"];
    let title = escape(text(&info["title"]));
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body><h1>{title} {}</h1>\
         <p>{}</p><p>The document itself: <a href=\"openapi.json\">openapi.json</a></p>",
        escape(text(&info["version"])),
        escape(text(&info["description"])),
    );
    for (tag, operations) in by_tag(document) {
        page.push_str(&format!("<h2 id=\"{0}\">{0}</h2>", escape(&tag)));
        operations.iter().for_each(|operation| page.push_str(&operation_html(operation)));
    }
    page.push_str("<h2 id=\"schemas\">Schemas</h2>");
    for (name, schema) in entries(&document["components"]["schemas"]) {
        page.push_str(&schema_html(name, schema));
    }
    page.push_str("</body></html>");
    page
}

/// One operation, with where it is.
struct Operation<'a> {
    method: &'static str,
    path: &'a str,
    value: &'a Value,
}

/// The operations by their tags, both in the order of the paths.
fn by_tag(document: &Value) -> Vec<(String, Vec<Operation<'_>>)> {
    let mut tags: Vec<(String, Vec<Operation<'_>>)> = Vec::new();
    for (path, item) in entries(&document["paths"]) {
        for method in METHODS {
            let Some(value) = item.get(method) else { continue };
            let tag = text(&value["tags"][0]);
            let operation = Operation { method, path, value };
            match tags.iter_mut().find(|(other, _)| other == tag) {
                Some((_, operations)) => operations.push(operation),
                None => tags.push((tag.to_owned(), vec![operation])),
            }
        }
    }
    tags
}

fn operation_html(operation: &Operation<'_>) -> String {
    let Operation { method, path, value } = operation;
    let role = value["security"][0]["token"][0].as_str().unwrap_or("no login");
    let mut html = format!(
        "<details><summary><span class=\"method\">{method}</span><code>{}</code><span class=\"role\">{}</span></summary>\
         <p>{} {}</p>",
        escape(path),
        escape(role),
        escape(text(&value["summary"])),
        escape(text(&value["description"])),
    );
    let parameters = value["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = parameters.iter().map(|parameter| {
        let place = format!("{} ({})", text(&parameter["name"]), text(&parameter["in"]));
        row(&place, &type_of(&parameter["schema"]), text(&parameter["description"]))
    });
    html.push_str(&table("Parameters", rows.collect()));
    let body = &value["requestBody"]["content"]["application/json"]["schema"];
    if !body.is_null() {
        html.push_str(&format!("<p>Body: {}</p>", type_of(body)));
    }
    let rows = entries(&value["responses"]).into_iter().map(|(status, response)| {
        let schema = entries(&response["content"]).first().map(|(_, content)| type_of(&content["schema"]));
        row(status, &schema.unwrap_or_default(), text(&response["description"]))
    });
    html.push_str(&table("Answers", rows.collect()));
    html.push_str("</details>");
    html
}

fn schema_html(name: &str, schema: &Value) -> String {
    let rows = entries(&schema["properties"])
        .into_iter()
        .map(|(field, property)| row(field, &type_of(property), text(&property["description"])));
    let rows: String = rows.collect();
    let body = if rows.is_empty() { format!("<p>{}</p>", type_of(schema)) } else { table("", rows) };
    let description = escape(text(&schema["description"]));
    let name = escape(name);
    format!(
        "<details id=\"{name}\"><summary><code>{name}</code></summary><p>{description}</p>{body}</details>"
    )
}

/// A schema in a few words, as HTML; named ones are links.
fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    if let Some(one_of) = schema["oneOf"].as_array() {
        return one_of.iter().map(type_of).collect::<Vec<_>>().join(" or ");
    }
    if let Some(words) = schema["enum"].as_array() {
        return words
            .iter()
            .map(|word| format!("<code>{}</code>", escape(&word.to_string())))
            .collect::<Vec<_>>()
            .join(", ");
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("list of {}", type_of(&schema["items"])),
        Value::String(kind) => escape(kind),
        Value::Array(kinds) => kinds.iter().map(|kind| escape(text(kind))).collect::<Vec<_>>().join(" or "),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    }
}

fn table(title: &str, rows: String) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let title = if title.is_empty() { String::new() } else { format!("<p><b>{title}</b></p>") };
    format!("{title}<table>{rows}</table>")
}

/// `html` is HTML already, the others are not.
fn row(name: &str, html: &str, description: &str) -> String {
    format!("<tr><td><code>{}</code></td><td>{html}</td><td>{}</td></tr>", escape(name), escape(description))
}

fn entries(object: &Value) -> Vec<(&str, &Value)> {
    object.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value)).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stands_in_the_document_is_text_and_no_html() {
        let operation =
            json!({ "tags": ["<script>"], "summary": "a & b", "security": [{ "token": ["admin"] }] });
        let page = render(&json!({ "paths": { "/x": { "get": operation } } }));
        assert!(page.contains("a &amp; b") && page.contains("&lt;script&gt;") && page.contains("admin"));
        assert!(!page.contains("<script"));
    }
}
