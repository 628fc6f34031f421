// Runs a script of steps with @aws-sdk/client-s3; python/steps.py says what it reads and prints.
import { createHash } from "node:crypto";
import { text } from "node:stream/consumers";

import { HttpProxyAgent } from "http-proxy-agent";
// paste from here
import { GetObjectCommand, HeadObjectCommand, S3Client, paginateListObjectsV2 } from "@aws-sdk/client-s3";
// paste to here

// By the local helper: HttpProxyAgent, because others make a tunnel that the helper cannot look into.
const httpProxy = process.env.HTTP_PROXY;
const requestHandler = httpProxy ? { httpAgent: new HttpProxyAgent(httpProxy) } : {};

function connect({ endpoint, region, accessKey, secretKey, token, style }) {
  // paste from here
  const options = {
    endpoint,
    region,
    credentials: { accessKeyId: accessKey, secretAccessKey: secretKey, sessionToken: token },
    forcePathStyle: style === "path",
  };
  // paste to here
  Object.assign(options, { requestHandler });
  // paste from here
  const client = new S3Client(options);
  // paste to here
  return client;
}

async function told(stream) {
  const digest = createHash("sha256");
  let length = 0;
  for await (const part of stream) {
    digest.update(part);
    length += part.length;
  }
  return { length, sha256: digest.digest("hex") };
}

async function get(client, Bucket, Key) {
  // paste from here
  const object = await client.send(new GetObjectCommand({ Bucket, Key }));
  // paste to here
  return told(object.Body);
}

const operations = {
  open: async (client, Bucket, { key }) => ({
    length: (await client.send(new HeadObjectCommand({ Bucket, Key: key }))).ContentLength,
  }),
  read: (client, Bucket, { key }) => get(client, Bucket, key),
  range: async (client, Bucket, { key, first, last }) => {
    const Range = `bytes=${first}-${last}`;
    return told((await client.send(new GetObjectCommand({ Bucket, Key: key, Range }))).Body);
  },
  list: async (client, Bucket, { prefix, page }) => {
    const keys = [];
    for await (const one of paginateListObjectsV2({ client, pageSize: page }, { Bucket, Prefix: prefix })) {
      keys.push(...(one.Contents ?? []).map((each) => each.Key));
    }
    return { keys };
  },
};

const done = {};
for (const job of JSON.parse(await text(process.stdin)).jobs) {
  const client = connect(job);
  done[job.name] = [];
  for (const step of job.steps) {
    try {
      done[job.name].push(await operations[step.op](client, job.bucket, step));
    } catch (error) {
      done[job.name].push({ error: `${error.name}: ${error.message}` });
    }
  }
}
console.log(JSON.stringify({ jobs: done }));
