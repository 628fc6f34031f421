import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.InputStream;
import java.security.MessageDigest;
import java.util.List;

/** A script of steps; python/steps.py says what is read and printed. */
final class Script {
    static final ObjectMapper JSON = new ObjectMapper();

    /** A client at the endpoint of one job. */
    interface Client {
        long head(String bucket, String key) throws Exception;

        InputStream get(String bucket, String key, String range) throws Exception;

        List<String> list(String bucket, String prefix, int page) throws Exception;
    }

    interface Connect {
        Client to(JsonNode job) throws Exception;
    }

    static void run(JsonNode script, Connect connect) throws Exception {
        ObjectNode done = JSON.createObjectNode();
        for (JsonNode job : script.get("jobs")) {
            Client client = connect.to(job);
            ArrayNode outcomes = done.putArray(job.get("name").asText());
            for (JsonNode step : job.get("steps")) {
                try {
                    outcomes.add(outcome(client, job.get("bucket").asText(), step));
                } catch (Exception error) {
                    outcomes.add(JSON.createObjectNode().put("error", error.toString()));
                }
            }
        }
        System.out.println(JSON.createObjectNode().set("jobs", done).toString());
        System.exit(0);
    }

    private static ObjectNode outcome(Client client, String bucket, JsonNode step) throws Exception {
        switch (step.get("op").asText()) {
            case "open":
                return JSON.createObjectNode().put("length", client.head(bucket, step.get("key").asText()));
            case "read":
                return told(client.get(bucket, step.get("key").asText(), null));
            case "range":
                String range = "bytes=" + step.get("first").asLong() + "-" + step.get("last").asLong();
                return told(client.get(bucket, step.get("key").asText(), range));
            case "list":
                List<String> keys = client.list(bucket, step.get("prefix").asText(), step.get("page").asInt());
                return JSON.createObjectNode().set("keys", JSON.valueToTree(keys));
            default:
                throw new IllegalArgumentException("no operation " + step.get("op"));
        }
    }

    private static ObjectNode told(InputStream body) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        byte[] buffer = new byte[65536];
        long length = 0;
        try (body) {
            for (int count; (count = body.read(buffer)) >= 0; length += count) {
                digest.update(buffer, 0, count);
            }
        }
        StringBuilder hex = new StringBuilder();
        for (byte each : digest.digest()) {
            hex.append(String.format("%02x", each));
        }
        return JSON.createObjectNode().put("length", length).put("sha256", hex.toString());
    }

    private Script() {}
}
