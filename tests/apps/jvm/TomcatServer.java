import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.time.Duration;
import org.apache.catalina.Context;
import org.apache.catalina.LifecycleException;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.startup.Tomcat;

/**
 * An embedded Tomcat on the listening socket that it was started with as descriptor 0.
 *
 * <pre>java -Drelease=2 -cp tomcat-server.jar:/usr/share/java/... TomcatServer [MANAGEMENT_PORT]</pre>
 *
 * Pages: / and /slow?seconds=1.5; and /health, 503 once it is stopping, also on 127.0.0.1:MANAGEMENT_PORT.
 */
public class TomcatServer {
    public static void main(String[] args) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(Files.createTempDirectory("tomcat").toString());
        Connector connector = new Connector("org.apache.coyote.http11.Http11NioProtocol");
        SharedSocketDrain drain = SharedSocketDrain.install(connector, tomcat.getEngine());
        tomcat.setConnector(connector);
        if (args.length > 0) {
            Connector management = new Connector();
            management.setPort(Integer.parseInt(args[0]));
            management.setProperty("address", "127.0.0.1");
            tomcat.getService().addConnector(management);
        }
        Context context = tomcat.addContext("", null);
        Tomcat.addServlet(context, "page", new Page(drain)).addMapping("/*");
        Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(tomcat, drain)));
        tomcat.start();
        tomcat.getServer().await();
    }

    private static void stop(Tomcat tomcat, SharedSocketDrain drain) {
        drain.run(Duration.ofSeconds(30));
        try {
            tomcat.stop();
        } catch (LifecycleException e) {
            System.err.println("Tomcat did not stop cleanly, ignoring: " + e);
        }
    }

    private static final class Page extends HttpServlet {
        private static final long serialVersionUID = 1;
        private final transient SharedSocketDrain drain;
        private final String body =
                "release=" + System.getProperty("release", "0") + " pid=" + ProcessHandle.current().pid() + "\n";

        Page(SharedSocketDrain drain) {
            this.drain = drain;
        }

        @Override
        protected void doGet(HttpServletRequest request, HttpServletResponse response) throws IOException {
            String path = request.getPathInfo();
            if ("/slow".equals(path)) {
                String seconds = request.getParameter("seconds");
                try {
                    Thread.sleep((long) (1000 * (seconds == null ? 1 : Double.parseDouble(seconds))));
                } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                }
            }
            if ("/health".equals(path) && drain.isDraining()) {
                response.setStatus(503);
            }
            response.setContentType("text/plain");
            response.setContentLength(body.length());
            response.getOutputStream().print(body);
        }
    }
}
