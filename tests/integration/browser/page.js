// Reads what its server plans, by the AWS SDK, and gives its server what it saw.
import { GetObjectCommand, ListObjectsV2Command, S3Client } from "@aws-sdk/client-s3";
import { parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";

async function body(client, plan, key, range) {
  const answer = await client.send(new GetObjectCommand({ Bucket: plan.bucket, Key: key, Range: range }));
  return (await answer.Body.transformToByteArray()).slice().buffer;
}

async function seen(work) {
  try {
    return { value: await work() };
  } catch (error) {
    return { error: error.name, status: error.$metadata?.httpStatusCode ?? null };
  }
}

async function rows(client, plan) {
  const file = await body(client, plan, plan.granted);
  const records = await parquetReadObjects({ file, compressors });
  return { rows: records.length, quantity: records.reduce((sum, each) => sum + Number(each.quantity), 0) };
}

async function names(client, plan) {
  const page = await client.send(new ListObjectsV2Command({ Bucket: plan.bucket, Prefix: plan.prefix }));
  return page.Contents.map((each) => each.Key);
}

const plan = await (await fetch("/plan")).json();
const client = new S3Client({
  endpoint: plan.endpoint,
  region: plan.region,
  forcePathStyle: true,
  maxAttempts: 1,
  credentials: { accessKeyId: plan.accessKey, secretAccessKey: plan.secretKey },
});
const result = {
  granted: await seen(() => rows(client, plan)),
  magic: await seen(async () => new TextDecoder().decode(await body(client, plan, plan.granted, "bytes=0-3"))),
  denied: await seen(() => body(client, plan, plan.denied)),
  absent: await seen(() => body(client, plan, plan.absent)),
  listed: await seen(() => names(client, plan)),
};
await fetch("/result", { method: "POST", body: JSON.stringify(result) });
