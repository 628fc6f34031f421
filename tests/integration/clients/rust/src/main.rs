//! Runs a script of steps with object_store; python/steps.py says what it reads and prints.

use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{path::Path, ObjectStore, ObjectStoreExt};
use serde_json::{json, Map, Value};
use sha2::{Digest, Sha256};

type Outcome = Result<Value, Box<dyn std::error::Error>>;

fn connect(job: &Value) -> object_store::Result<AmazonS3> {
    let text = |name: &str| job[name].as_str().unwrap_or_default();
    let (endpoint, region, bucket) = (text("endpoint"), text("region"), text("bucket"));
    let (access_key, secret_key) = (text("accessKey"), text("secretKey"));
    let virtual_host = text("style") == "virtual";
    let with_bucket = endpoint.replacen("://", &format!("://{bucket}."), 1);
    let endpoint = if virtual_host { &with_bucket } else { endpoint };
    // paste from here
    let mut builder = AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_region(region)
        .with_access_key_id(access_key)
        .with_secret_access_key(secret_key)
        .with_virtual_hosted_style_request(virtual_host)
        .with_bucket_name(bucket);
    // paste to here
    if let Some(token) = job["token"].as_str() {
        builder = builder.with_token(token);
    }
    // paste from here
    let store = builder.build()?;
    // paste to here
    Ok(store)
}

fn told(body: &[u8]) -> Value {
    let digest: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"length": body.len(), "sha256": digest})
}

async fn run(store: &AmazonS3, step: &Value) -> Outcome {
    let key = step["key"].as_str().unwrap_or_default();
    let number = |name: &str| step[name].as_u64().unwrap_or_default();
    match step["op"].as_str().unwrap_or_default() {
        "open" => Ok(json!({"length": store.head(&Path::parse(key)?).await?.size})),
        "read" => {
            // paste from here
            let body = store.get(&Path::parse(key)?).await?.bytes().await?;
            // paste to here
            Ok(told(&body))
        }
        "range" => {
            let range = number("first")..number("last") + 1;
            Ok(told(&store.get_range(&Path::parse(key)?, range).await?))
        }
        "list" => {
            let prefix = Path::parse(step["prefix"].as_str().unwrap_or_default())?;
            let found: Vec<_> = store.list(Some(&prefix)).try_collect().await?;
            let mut keys: Vec<_> = found.iter().map(|each| each.location.to_string()).collect();
            keys.sort();
            Ok(json!({"keys": keys}))
        }
        other => Err(format!("no operation {other}").into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let script: Value = serde_json::from_reader(std::io::stdin())?;
    let mut done = Map::new();
    for job in script["jobs"].as_array().into_iter().flatten() {
        let store = connect(job)?;
        let mut outcomes = vec![];
        for step in job["steps"].as_array().into_iter().flatten() {
            let outcome = run(&store, step).await;
            outcomes.push(outcome.unwrap_or_else(|error| json!({"error": error.to_string()})));
        }
        done.insert(job["name"].as_str().unwrap_or_default().into(), outcomes.into());
    }
    println!("{}", json!({"jobs": done}));
    Ok(())
}
