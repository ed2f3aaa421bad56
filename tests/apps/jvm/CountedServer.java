import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;

/**
 * Tells svd about each request by statsd, where svd has asked for it ([counts] statsd = true): the class Counts is all
 * that a server needs. This one answers every path with the status that it names.
 *
 * <pre>java CountedServer.java PORT</pre>
 */
public class CountedServer {
    /** Datagrams to the address in the environment; without one it does nothing. Safe for use by several threads. */
    static final class Counts {
        private final String prefix = System.getenv("AIRDOCK_STATSD_PREFIX");
        private final DatagramSocket socket;

        Counts() throws IOException {
            socket = prefix == null ? null : new DatagramSocket();
            if (socket != null) {
                socket.connect(new InetSocketAddress(InetAddress.getByName(System.getenv("AIRDOCK_STATSD_HOST")),
                        Integer.parseInt(System.getenv("AIRDOCK_STATSD_PORT"))));
            }
        }

        /** A request is finished. */
        void request(int status, long nanos) {
            if (socket != null) {
                String line = prefix + ".requests:" + nanos / 1e6 + "|ms|#status:" + status;
                byte[] bytes = line.getBytes(StandardCharsets.US_ASCII);
                try {
                    socket.send(new DatagramPacket(bytes, bytes.length));
                } catch (IOException e) {
                    // Nobody listens now. A count must never cost a request.
                }
            }
        }
    }

    public static void main(String[] args) throws IOException {
        Counts counts = new Counts();
        int port = Integer.parseInt(args[0]);
        HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
        server.createContext("/", exchange -> {
            long began = System.nanoTime();
            int status = Integer.parseInt(exchange.getRequestURI().getPath().substring(1));
            exchange.sendResponseHeaders(status, -1);
            exchange.close();
            counts.request(status, System.nanoTime() - began);
        });
        server.start();
    }
}
