import jakarta.servlet.ServletException;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.channels.Channel;
import java.time.Duration;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.catalina.Container;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.connector.Request;
import org.apache.catalina.connector.Response;
import org.apache.catalina.valves.ValveBase;

/**
 * Stops a Tomcat that serves a listening socket shared with the next generation, without losing a connection.
 *
 * <pre>
 * SharedSocketDrain drain = SharedSocketDrain.install(connector, tomcat.getEngine());
 * Runtime.getRuntime().addShutdownHook(new Thread(() -&gt; { drain.run(Duration.ofSeconds(30)); tomcat.stop(); }));
 * </pre>
 *
 * Tomcat's own stop pauses the connector first. Its acceptor, which is waiting in accept(), then still takes one
 * connection that belongs to the next generation, and drops it. Here the inherited channel is closed before anything
 * is paused: the acceptor takes nothing more, and the socket lives on in the other process.
 */
public final class SharedSocketDrain extends ValveBase {
    /** How long clients are told "Connection: close" before idle connections are closed. */
    private static final Duration LINGER = Duration.ofMillis(500);

    private final AtomicInteger open = new AtomicInteger();
    private volatile boolean draining;

    private SharedSocketDrain() {
        super(true);
    }

    /** Makes `connector` serve descriptor 0. Call it before Tomcat starts. */
    public static SharedSocketDrain install(Connector connector, Container engine) throws IOException {
        // Closing the inherited channel points descriptors 1 and 2 at /dev/null: keep writing to what they are now.
        System.setOut(new PrintStream(new FileOutputStream("/proc/self/fd/1", true), true));
        System.setErr(new PrintStream(new FileOutputStream("/proc/self/fd/2", true), true));
        connector.setProperty("useInheritedChannel", "true");
        SharedSocketDrain drain = new SharedSocketDrain();
        engine.getPipeline().addValve(drain);
        return drain;
    }

    public boolean isDraining() {
        return draining;
    }

    @Override
    public void invoke(Request request, Response response) throws IOException, ServletException {
        open.incrementAndGet();
        try {
            if (draining) {
                response.setHeader("Connection", "close");
            }
            getNext().invoke(request, response);
            if (draining && !response.isCommitted()) {
                response.setHeader("Connection", "close");
            }
        } finally {
            open.decrementAndGet();
        }
    }

    /** Returns when Tomcat may be stopped: no connection comes any more, and requests in flight have ended. */
    public void run(Duration limit) {
        long deadline = System.nanoTime() + limit.toNanos();
        draining = true;
        try {
            Channel inherited = System.inheritedChannel();
            if (inherited != null) {
                inherited.close();
            }
        } catch (IOException e) {
            System.err.println("cannot close the inherited socket, ignoring: " + e);
        }
        try {
            Thread.sleep(LINGER.toMillis());
            while (open.get() > 0 && System.nanoTime() < deadline) {
                Thread.sleep(20);
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }
}
