import com.amazonaws.auth.AWSCredentials;
import com.amazonaws.auth.AWSStaticCredentialsProvider;
import com.amazonaws.auth.BasicAWSCredentials;
import com.amazonaws.auth.BasicSessionCredentials;
import com.amazonaws.client.builder.AwsClientBuilder.EndpointConfiguration;
import com.amazonaws.services.s3.AmazonS3;
import com.amazonaws.services.s3.AmazonS3ClientBuilder;
import com.amazonaws.services.s3.model.GetObjectRequest;
import com.amazonaws.services.s3.model.ListObjectsV2Request;
import com.amazonaws.services.s3.model.ListObjectsV2Result;
import com.amazonaws.services.s3.model.S3ObjectSummary;
import com.fasterxml.jackson.databind.JsonNode;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.List;

/** AWS SDK for Java v1. */
final class V1 {
    public static void main(String[] arguments) throws Exception {
        Script.run(Script.JSON.readTree(System.in), V1::connect);
    }

    private static Script.Client connect(JsonNode job) {
        String endpoint = job.get("endpoint").asText(), region = job.get("region").asText();
        String accessKey = job.get("accessKey").asText(), secretKey = job.get("secretKey").asText();
        boolean pathStyle = job.get("style").asText().equals("path");
        AWSCredentials keys =
                job.hasNonNull("token")
                        ? new BasicSessionCredentials(accessKey, secretKey, job.get("token").asText())
                        : new BasicAWSCredentials(accessKey, secretKey);
        // paste from here
        AmazonS3 s3 =
                AmazonS3ClientBuilder.standard()
                        .withEndpointConfiguration(new EndpointConfiguration(endpoint, region))
                        .withPathStyleAccessEnabled(pathStyle)
                        .withCredentials(new AWSStaticCredentialsProvider(keys))
                        .build();
        // paste to here
        return new Script.Client() {
            public long head(String bucket, String key) {
                return s3.getObjectMetadata(bucket, key).getContentLength();
            }

            public InputStream get(String bucket, String key, String range) {
                if (range != null) {
                    String[] ends = range.substring("bytes=".length()).split("-");
                    GetObjectRequest asked = new GetObjectRequest(bucket, key);
                    asked.setRange(Long.parseLong(ends[0]), Long.parseLong(ends[1]));
                    return s3.getObject(asked).getObjectContent();
                }
                // paste from here
                InputStream body = s3.getObject(bucket, key).getObjectContent();
                // paste to here
                return body;
            }

            public List<String> list(String bucket, String prefix, int page) {
                List<String> keys = new ArrayList<>();
                ListObjectsV2Request asked = new ListObjectsV2Request();
                asked.withBucketName(bucket).withPrefix(prefix).withMaxKeys(page);
                ListObjectsV2Result found;
                do {
                    found = s3.listObjectsV2(asked);
                    for (S3ObjectSummary each : found.getObjectSummaries()) {
                        keys.add(each.getKey());
                    }
                    asked.setContinuationToken(found.getNextContinuationToken());
                } while (found.isTruncated());
                return keys;
            }
        };
    }
}
