import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HexFormat;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;

/** Prints the partition that Kafka's producer chooses for each key: hex lines in, numbers out. */
class Partitions {
    public static void main(String[] arguments) throws Exception {
        int partitions = Integer.parseInt(arguments[0]);
        StringBuilder answers = new StringBuilder();
        BufferedReader keys = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = keys.readLine()) != null; ) {
            byte[] key = HexFormat.of().parseHex(line);
            answers.append(BuiltInPartitioner.partitionForKey(key, partitions)).append('\n');
        }
        System.out.print(answers);
    }
}
