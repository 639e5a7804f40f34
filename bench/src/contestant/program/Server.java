// The JDK's own HTTP server with a thread for each CPU that it is told of: GET /N is N bytes, byte i being i modulo 251.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

public class Server {
    static final int MAX_ANSWER = 4 << 20;

    public static void main(String[] words) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(words[0], Integer.parseInt(words[1])), 4096);
        server.setExecutor(Executors.newFixedThreadPool(Runtime.getRuntime().availableProcessors()));
        server.createContext("/", exchange -> {
            int length = Integer.parseInt("0" + exchange.getRequestURI().getPath().substring(1));
            byte[] answer = new byte[Math.min(length, MAX_ANSWER)];
            for (int i = 0; i < answer.length; i++) {
                answer[i] = (byte) (i % 251);
            }
            // In this interface 0 would mean chunks.
            exchange.sendResponseHeaders(200, answer.length == 0 ? -1 : answer.length);
            if (answer.length > 0) {
                exchange.getResponseBody().write(answer);
            }
            exchange.close();
        });
        server.start();
    }
}
