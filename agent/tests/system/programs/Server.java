// Says which container answers, and which client asked.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class Server {
    public static void main(String[] words) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(80), 0);
        server.createContext("/", exchange -> {
            InetSocketAddress client = exchange.getRemoteAddress();
            String address = client.getAddress().getHostAddress() + ":" + client.getPort();
            byte[] answer = (System.getenv("HOSTNAME") + " client=" + address + "\n").getBytes();
            exchange.getResponseHeaders().set("Connection", "close");
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
