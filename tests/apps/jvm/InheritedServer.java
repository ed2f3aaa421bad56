import java.io.BufferedInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * A small HTTP server on the listening socket that it was started with as descriptor 0.
 *
 * <pre>java -Drelease=2 InheritedServer.java [MANAGEMENT_PORT]</pre>
 *
 * Pages: / and /slow?seconds=1.5, and on 127.0.0.1:MANAGEMENT_PORT /health, which is 503 once the server is stopping.
 *
 * On TERM it stops accepting at once, since the next generation accepts from the same socket; for LINGER it goes on
 * answering on the connections it has, telling their clients "Connection: close"; then it closes the idle ones, waits
 * for requests in flight and ends.
 */
public class InheritedServer {
    static final long LINGER_MILLIS = 500;
    static final long DRAIN_MILLIS = 30_000;
    static final int IDLE_MILLIS = 60_000;

    private final String release = System.getProperty("release", "0");
    private final ServerSocketChannel listener;
    private final Selector selector = Selector.open();
    private final ExecutorService threads = Executors.newCachedThreadPool(InheritedServer::daemon);
    private final Set<Socket> idle = ConcurrentHashMap.newKeySet();
    private final Set<Socket> busy = ConcurrentHashMap.newKeySet();
    private volatile boolean stopping;

    InheritedServer() throws IOException {
        if (!(System.inheritedChannel() instanceof ServerSocketChannel inherited)) {
            throw new IOException("descriptor 0 is no listening socket");
        }
        listener = inherited;
        // Non-blocking, so that accepting can end without closing: a close of the inherited channel points stdout and
        // stderr at /dev/null. The flag belongs to the socket and is shared with the other generations.
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
    }

    public static void main(String[] args) throws Exception {
        InheritedServer server = new InheritedServer();
        Runtime.getRuntime().addShutdownHook(new Thread(server::stop));
        if (args.length > 0) {
            server.manage(Integer.parseInt(args[0]));
        }
        server.accept();
        Thread.currentThread().join(); // stop() ends the program
    }

    private void accept() throws IOException {
        while (!stopping) {
            selector.select();
            selector.selectedKeys().clear();
            SocketChannel channel = stopping ? null : listener.accept();
            if (channel != null) {
                channel.configureBlocking(true);
                Socket socket = channel.socket();
                idle.add(socket);
                threads.execute(() -> serve(socket));
            }
        }
    }

    private void serve(Socket socket) {
        try (socket) {
            socket.setTcpNoDelay(true);
            socket.setSoTimeout(IDLE_MILLIS);
            InputStream in = new BufferedInputStream(socket.getInputStream());
            boolean open = true;
            while (open) {
                String head = readHead(in, socket);
                if (head == null) {
                    return;
                }
                open = answer(head, socket.getOutputStream());
                idle.add(socket);
                busy.remove(socket);
            }
        } catch (IOException e) {
            // the client has gone, or was idle when the server stopped
        } finally {
            idle.remove(socket);
            busy.remove(socket);
        }
    }

    /** The lines up to the empty one; null at the end of the connection. */
    private String readHead(InputStream in, Socket socket) throws IOException {
        StringBuilder head = new StringBuilder();
        for (int b = in.read(); b >= 0 && head.length() < 16_384; b = in.read()) {
            if (head.length() == 0) {
                busy.add(socket);
                idle.remove(socket);
            }
            head.append((char) b);
            if (b == '\n' && head.toString().endsWith("\r\n\r\n")) {
                return head.toString();
            }
        }
        return null;
    }

    /** Answers one request; whether the connection stays open. */
    private boolean answer(String head, OutputStream out) throws IOException {
        String path = head.split(" ", 3)[1];
        if (path.startsWith("/slow")) {
            int at = path.indexOf("seconds=");
            sleep((long) (1000 * (at < 0 ? 1 : Double.parseDouble(path.substring(at + 8)))));
        }
        // Asked after the work: a stop that came meanwhile is told to the client, too.
        boolean close = stopping || head.toLowerCase().contains("\nconnection: close");
        write(out, "200 OK", "release=" + release + " pid=" + ProcessHandle.current().pid() + "\n", close);
        return !close;
    }

    private static void write(OutputStream out, String status, String body, boolean close) throws IOException {
        String answer = "HTTP/1.1 " + status + "\r\nContent-Type: text/plain\r\nContent-Length: " + body.length()
                + (close ? "\r\nConnection: close" : "") + "\r\n\r\n" + body;
        out.write(answer.getBytes());
        out.flush();
    }

    /** The private port: readiness and health. */
    private void manage(int port) throws IOException {
        ServerSocketChannel channel = ServerSocketChannel.open()
                .bind(new InetSocketAddress(InetAddress.getLoopbackAddress(), port));
        daemon(() -> {
            while (true) {
                try (Socket socket = channel.accept().socket()) {
                    socket.setSoTimeout(1000);
                    InputStream in = new BufferedInputStream(socket.getInputStream());
                    while (in.read() != '\n') { }
                    write(socket.getOutputStream(), stopping ? "503 Stopping" : "200 OK", "release=" + release + "\n", true);
                } catch (IOException e) {
                    // one client's trouble
                }
            }
        }).start();
    }

    private void stop() {
        stopping = true;
        selector.wakeup();
        sleep(LINGER_MILLIS);
        idle.forEach(InheritedServer::close);
        for (long waited = 0; !busy.isEmpty() && waited < DRAIN_MILLIS; waited += 20) {
            sleep(20);
        }
    }

    private static void close(Socket socket) {
        try {
            socket.close();
        } catch (IOException e) {
            // closed already
        }
    }

    private static void sleep(long millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private static Thread daemon(Runnable work) {
        Thread thread = new Thread(work);
        thread.setDaemon(true);
        return thread;
    }
}
