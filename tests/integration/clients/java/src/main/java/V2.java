import com.fasterxml.jackson.databind.JsonNode;
import java.io.InputStream;
import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.AwsCredentials;
import software.amazon.awssdk.auth.credentials.AwsSessionCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.core.async.AsyncResponseTransformer;
import software.amazon.awssdk.http.SdkHttpClient;
import software.amazon.awssdk.http.apache.ApacheHttpClient;
import software.amazon.awssdk.http.apache5.Apache5HttpClient;
import software.amazon.awssdk.http.crt.AwsCrtHttpClient;
import software.amazon.awssdk.http.nio.netty.NettyNioAsyncHttpClient;
import software.amazon.awssdk.http.urlconnection.UrlConnectionHttpClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.s3.S3AsyncClient;
import software.amazon.awssdk.services.s3.S3Client;
import software.amazon.awssdk.services.s3.model.GetObjectRequest;
import software.amazon.awssdk.services.s3.model.ListObjectsV2Request;
import software.amazon.awssdk.services.s3.model.ListObjectsV2Response;
import software.amazon.awssdk.services.s3.model.S3Object;

/** AWS SDK for Java v2 with the HTTP client that the script names. */
final class V2 {
    public static void main(String[] arguments) throws Exception {
        JsonNode script = Script.JSON.readTree(System.in);
        String http = script.get("http").asText();
        Script.run(script, job -> http.equals("netty") ? asynchronous(job) : synchronous(job, http(http)));
    }

    private static SdkHttpClient http(String name) {
        switch (name) {
            case "apache": {
                // apache: paste from here
                SdkHttpClient http = ApacheHttpClient.create();
                // apache: paste to here
                return http;
            }
            case "apache5": {
                // apache5: paste from here
                SdkHttpClient http = Apache5HttpClient.create();
                // apache5: paste to here
                return http;
            }
            case "url-connection": {
                // url-connection: paste from here
                SdkHttpClient http = UrlConnectionHttpClient.create();
                // url-connection: paste to here
                return http;
            }
            default: {
                // crt: paste from here
                SdkHttpClient http = AwsCrtHttpClient.create();
                // crt: paste to here
                return http;
            }
        }
    }

    private static AwsCredentials credentials(JsonNode job) {
        String accessKey = job.get("accessKey").asText(), secretKey = job.get("secretKey").asText();
        return job.hasNonNull("token")
                ? AwsSessionCredentials.create(accessKey, secretKey, job.get("token").asText())
                : AwsBasicCredentials.create(accessKey, secretKey);
    }

    private static Script.Client synchronous(JsonNode job, SdkHttpClient http) {
        String endpoint = job.get("endpoint").asText(), region = job.get("region").asText();
        AwsCredentials keys = credentials(job);
        boolean pathStyle = job.get("style").asText().equals("path");
        // sync: paste from here
        S3Client s3 =
                S3Client.builder()
                        .endpointOverride(URI.create(endpoint))
                        .region(Region.of(region))
                        .credentialsProvider(StaticCredentialsProvider.create(keys))
                        .forcePathStyle(pathStyle)
                        .httpClient(http)
                        .build();
        // sync: paste to here
        return new Script.Client() {
            public long head(String bucket, String key) {
                return s3.headObject(asked -> asked.bucket(bucket).key(key)).contentLength();
            }

            public InputStream get(String bucket, String key, String range) {
                // sync: paste from here
                GetObjectRequest asked = GetObjectRequest.builder().bucket(bucket).key(key).range(range).build();
                InputStream body = s3.getObject(asked);
                // sync: paste to here
                return body;
            }

            public List<String> list(String bucket, String prefix, int page) {
                List<String> keys = new ArrayList<>();
                for (ListObjectsV2Response each : s3.listObjectsV2Paginator(listing(bucket, prefix, page))) {
                    each.contents().stream().map(S3Object::key).forEach(keys::add);
                }
                return keys;
            }
        };
    }

    private static Script.Client asynchronous(JsonNode job) {
        String endpoint = job.get("endpoint").asText(), region = job.get("region").asText();
        AwsCredentials keys = credentials(job);
        boolean pathStyle = job.get("style").asText().equals("path");
        // netty: paste from here
        S3AsyncClient s3 =
                S3AsyncClient.builder()
                        .endpointOverride(URI.create(endpoint))
                        .region(Region.of(region))
                        .credentialsProvider(StaticCredentialsProvider.create(keys))
                        .forcePathStyle(pathStyle)
                        .httpClientBuilder(NettyNioAsyncHttpClient.builder())
                        .build();
        // netty: paste to here
        return new Script.Client() {
            public long head(String bucket, String key) {
                return s3.headObject(asked -> asked.bucket(bucket).key(key)).join().contentLength();
            }

            public InputStream get(String bucket, String key, String range) {
                // netty: paste from here
                GetObjectRequest asked = GetObjectRequest.builder().bucket(bucket).key(key).range(range).build();
                InputStream body = s3.getObject(asked, AsyncResponseTransformer.toBlockingInputStream()).join();
                // netty: paste to here
                return body;
            }

            public List<String> list(String bucket, String prefix, int page) {
                List<String> keys = new ArrayList<>();
                s3.listObjectsV2Paginator(listing(bucket, prefix, page))
                        .subscribe(each -> each.contents().stream().map(S3Object::key).forEach(keys::add))
                        .join();
                return keys;
            }
        };
    }

    private static ListObjectsV2Request listing(String bucket, String prefix, int page) {
        return ListObjectsV2Request.builder().bucket(bucket).prefix(prefix).maxKeys(page).build();
    }

    private V2() {}
}
