// Says which container answers, and which client asked; by Netty's native transport, which registers with epoll first.
import io.netty.bootstrap.ServerBootstrap;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelFutureListener;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.SimpleChannelInboundHandler;
import io.netty.channel.epoll.EpollEventLoopGroup;
import io.netty.channel.epoll.EpollServerSocketChannel;
import io.netty.channel.socket.SocketChannel;
import io.netty.util.CharsetUtil;
import java.net.InetSocketAddress;

public class Netty {
    public static void main(String[] words) throws Exception {
        EpollEventLoopGroup loops = new EpollEventLoopGroup();
        ServerBootstrap server = new ServerBootstrap().group(loops).channel(EpollServerSocketChannel.class);
        server.childHandler(new ChannelInitializer<SocketChannel>() {
            @Override
            protected void initChannel(SocketChannel channel) {
                channel.pipeline().addLast(new Answer());
            }
        });
        server.bind(80).sync().channel().closeFuture().sync();
    }

    static class Answer extends SimpleChannelInboundHandler<ByteBuf> {
        @Override
        protected void channelRead0(ChannelHandlerContext context, ByteBuf request) {
            InetSocketAddress client = (InetSocketAddress) context.channel().remoteAddress();
            String address = client.getAddress().getHostAddress() + ":" + client.getPort();
            String answer = "HTTP/1.0 200 OK\r\n\r\n" + System.getenv("HOSTNAME") + " client=" + address + "\n";
            context.writeAndFlush(Unpooled.copiedBuffer(answer, CharsetUtil.UTF_8)).addListener(ChannelFutureListener.CLOSE);
        }
    }
}
